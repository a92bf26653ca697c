//! How fast one large file goes in through the gateway: parsed as multipart, hashed, written, forced to the disk and
//! entered before the answer. Beside it the same bytes written by this process and forced to the disk, and the same bytes
//! put to nginx, which neither hashes nor forces anything.

use std::{
    fs::File,
    io::Write as _,
    time::{Duration, Instant},
};

use bytes::Bytes;
use reqwest::{Body, Method, multipart};
use serde_json::Value;

use crate::{
    Fault, Options,
    ground::Ground,
    house::{House, answered},
    proof::{self, Counters},
    rows::{Report, Row, Spread},
    yardstick::nginx::Nginx,
};

const BENCH: &str = "upload";
const MIB: usize = 1 << 20;
const UNIT: &str = "MiB/s";

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    let url = ground.empty_database("house").await?;
    let house = House::open(ground, &url, &[]).await?;
    let nginx = Nginx::start(ground, &house.http, 1).await?;
    let before = Counters::read(&url).await?;
    let (mut ours, mut bare, mut nginxs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        report.say(&format!("upload, round {round} of {}", options.rounds));
        let rate = |took: Duration| f64::from(options.upload_mib) / took.as_secs_f64();
        let (took, file) = to_gateway(&house, options.upload_mib).await?;
        ours.push(rate(took));
        if round == 1 {
            report.prove("answer", &file.to_string());
        }
        let id = file["id"].as_str().ok_or("the file has no id")?;
        // The next round has the same room on the disk.
        house.request(Method::DELETE, &format!("/api/v1/files/{id}")).send().await?.error_for_status()?;
        bare.push(rate(to_disk(ground, options.upload_mib).await?));
        nginxs.push(rate(to_nginx(&nginx, options.upload_mib).await?));
    }
    nginx.stop().await?;
    house.close().await?;
    report.prove("server", &proof::settings(&url).await?);
    report.prove("guildhall", &Counters::read(&url).await?.since(before));

    let spread = |rates: &[f64]| rates.iter().copied().collect::<Spread>();
    let row = |yardstick, of: &[f64]| Row {
        metric: "one_file",
        value: spread(&ours),
        unit: UNIT,
        yardstick: Some((yardstick, spread(of))),
    };
    report.rows(BENCH, vec![row("write and fsync", &bare), row("nginx PUT, not synced", &nginxs)]);
    Ok(())
}

/// Bytes that no file system or cache could take for others: the counter of each block stands in it.
fn block(number: u32) -> Bytes {
    let mut state = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(MIB);
    while bytes.len() < MIB {
        // xorshift64: fast, and compresses to nothing smaller.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.into()
}

/// The file as a stream, and its length.
fn stream(mib: u32, blocks: Vec<Bytes>) -> (Body, u64) {
    let places = (0..mib as usize).map(move |n| Ok::<_, std::io::Error>(blocks[n % blocks.len()].clone()));
    (Body::wrap_stream(futures::stream::iter(places)), u64::from(mib) * MIB as u64)
}

/// A few blocks, made before the clock runs.
fn blocks() -> Vec<Bytes> {
    (0..16).map(block).collect()
}

async fn to_gateway(house: &House, mib: u32) -> Result<(Duration, Value), Fault> {
    let (body, length) = stream(mib, blocks());
    let part = multipart::Part::stream_with_length(body, length).file_name("large.bin");
    let request = house.request(Method::POST, "/api/v1/files").multipart(multipart::Form::new().part("file", part));
    let started = Instant::now();
    let mut answer = answered(request).await?;
    let took = started.elapsed();
    let file = answer["items"][0].take();
    if file["size_bytes"].as_u64() != Some(length) {
        return Err(format!("the gateway has another file: {file}").into());
    }
    Ok((took, file))
}

async fn to_nginx(nginx: &Nginx, mib: u32) -> Result<Duration, Fault> {
    let (body, length) = stream(mib, blocks());
    let put = reqwest::Client::new().put(nginx.url("/uploads/large.bin")).header("content-length", length).body(body);
    let started = Instant::now();
    put.send().await?.error_for_status()?;
    let took = started.elapsed();
    std::fs::remove_file(nginx.uploads().join("large.bin"))?;
    Ok(took)
}

async fn to_disk(ground: &Ground, mib: u32) -> Result<Duration, Fault> {
    let path = ground.empty_folder("bare")?.join("large.bin");
    let blocks = blocks();
    let written = tokio::task::spawn_blocking(move || {
        let started = Instant::now();
        let mut file = File::create(&path)?;
        for n in 0..mib as usize {
            file.write_all(&blocks[n % blocks.len()])?;
        }
        file.sync_all()?;
        let took = started.elapsed();
        std::fs::remove_file(&path)?;
        Ok::<_, std::io::Error>(took)
    });
    Ok(written.await??)
}
