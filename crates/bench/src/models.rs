//! The main job: pictures of 24 megapixels become models, from `process_batch` to the archive. How much of a core and of
//! memory each costs, and how long the whole takes, beside what no way of doing it could save: decoding the picture, the
//! room of its pixels, and every core busy all the time.

use std::{
    fs,
    time::{Duration, Instant},
};

use image::{RgbImage, codecs::jpeg::JpegEncoder, imageops::FilterType};
use nix::sys::{
    resource::{Usage, UsageWho, getrusage},
    time::TimeValLike as _,
};
use reqwest::{Method, multipart};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};
use zune_core::bytestream::ZCursor;
use zune_jpeg::JpegDecoder;

use crate::{
    Fault, Options,
    ground::Ground,
    house::{House, answered},
    proof::{self, Counters},
    rows::{Report, Row, Spread},
};

const BENCH: &str = "models";
/// 24 megapixels with sides as 3 to 2, as cameras have them.
const WIDTH: u32 = 6000;
const HEIGHT: u32 = 4000;
/// Pictures that differ; more of them would measure drawing.
const KINDS: usize = 4;
/// As cameras and editors write them.
const QUALITY: u8 = 90;
const MIB: f64 = 1_048_576.0;
/// Of `/proc/<pid>/stat`: the same on every Linux but Alpha's.
const TICKS_PER_S: f64 = 100.0;
const POLL: Duration = Duration::from_millis(100);
const DONE_WITHIN: Duration = Duration::from_secs(18 * 60);

pub(crate) async fn run(options: &Options, ground: &Ground, report: &mut Report) -> Result<(), Fault> {
    report.say("models: drawing pictures of 24 megapixels");
    let pictures = tokio::task::spawn_blocking(draw).await??;
    let decoding = tokio::task::spawn_blocking({
        let pictures = pictures.clone();
        move || pictures.iter().map(|picture| decode(picture)).collect::<Result<Spread, Fault>>()
    });
    let decoding = decoding.await??;

    let url = ground.empty_database("house").await?;
    let mut house = House::open(ground, &url, &[]).await?;
    let cores = std::thread::available_parallelism()?.get();
    report.say(&format!("models: uploading {} pictures", options.pictures));
    let mut file_ids = Vec::new();
    for n in 0..options.pictures as usize {
        file_ids.push(upload(&house, n, &pictures[n % pictures.len()]).await?);
    }
    house.sign_in().await?;

    report.say(&format!("models: making {} models on {cores} cores", options.pictures));
    let before = Counters::read(&url).await?;
    let idle = Load::of(&house)?;
    let started = Instant::now();
    let batch = json!({ "task": "process_batch", "args": { "file_ids": file_ids } });
    let job = house.post("/api/v1/jobs", &batch).await?;
    let id = job["id"].as_str().ok_or("the job has no id")?.to_owned();
    let (load, seconds) = wait(&house, &url, &id).await?;
    let wall = started.elapsed().as_secs_f64();
    house.sign_in().await?;
    let result = house.get(&format!("/api/v1/jobs/{id}")).await?["result"].take();
    if result["succeeded"].as_u64() != Some(options.pictures.into()) {
        return Err(format!("not every picture became a model: {result}").into());
    }
    house.close().await?;

    let count = f64::from(options.pictures);
    let slots_s = load.slots_s / count;
    report.prove("server", &proof::settings(&url).await?);
    report.prove("guildhall", &format!("{}; {}", proof::rows(&url).await?, Counters::read(&url).await?.since(before)));
    report.prove(
        "machine",
        &format!(
            "{cores} cores; {} pictures of {} KiB in the mean; the process of the roles used {:.2} s of a core and {:.0} MiB at its peak",
            options.pictures,
            pictures.iter().map(Vec::len).sum::<usize>() / pictures.len() / 1024,
            load.roles_s - idle.roles_s,
            load.roles_peak_mib,
        ),
    );
    let row = |metric, value: Spread, unit, yardstick, of: Spread| Row {
        metric,
        value,
        unit,
        yardstick: Some((yardstick, of)),
    };
    let pixels = f64::from(WIDTH) * f64::from(HEIGHT) * 3.0 / MIB;
    #[expect(clippy::cast_precision_loss, reason = "cores are few")]
    let ideal = count * slots_s / cores as f64;
    report.rows(
        BENCH,
        vec![
            row("core_s_per_picture", slots_s.into(), "s", "decoding it", decoding),
            row("slot_memory_peak", load.slot_peak_mib.into(), "MiB", "its pixels, 3 bytes each", pixels.into()),
            row("whole_batch", wall.into(), "s", "its cores always busy", ideal.into()),
            Row { metric: "attempt", value: seconds.into(), unit: "s", yardstick: None },
            Row { metric: "memory_peak_of_all", value: load.all_peak_mib.into(), unit: "MiB", yardstick: None },
        ],
    );
    Ok(())
}

/// Pictures in JPEG: the samples of the first start, as large as a camera's and with the grain of one, without which they
/// would be too easily read.
fn draw() -> Result<Vec<Vec<u8>>, Fault> {
    let mut pictures = Vec::new();
    for sample in tasks::samples::draw().take(KINDS) {
        let small = image::load_from_memory(&sample.bytes)?.to_rgb8();
        let mut large: RgbImage = image::imageops::resize(&small, WIDTH, HEIGHT, FilterType::Triangle);
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for channel in large.iter_mut() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            #[expect(clippy::cast_possible_truncation, reason = "five of its bits are wanted")]
            let grain = (state as u8) & 31;
            *channel = channel.saturating_add(grain).saturating_sub(15);
        }
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, QUALITY).encode_image(&large)?;
        pictures.push(jpeg);
    }
    Ok(pictures)
}

/// Seconds of a core that the fastest decoder at hand takes for the pixels.
fn decode(picture: &[u8]) -> Result<f64, Fault> {
    let before = core_s(&getrusage(UsageWho::RUSAGE_THREAD)?);
    let pixels = JpegDecoder::new(ZCursor::new(picture)).decode().map_err(|error| error.to_string())?;
    let after = core_s(&getrusage(UsageWho::RUSAGE_THREAD)?);
    if pixels.len() < (WIDTH * HEIGHT) as usize {
        return Err("the picture is not as large as it was drawn".into());
    }
    Ok(after - before)
}

fn core_s(usage: &Usage) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a short run")]
    let microseconds = (usage.user_time() + usage.system_time()).num_microseconds() as f64;
    microseconds / 1e6
}

async fn upload(house: &House, n: usize, picture: &[u8]) -> Result<String, Fault> {
    let part = multipart::Part::bytes(picture.to_vec()).file_name(format!("picture-{n:04}.jpg"));
    let form = multipart::Form::new().part("file", part);
    let answer: Value = answered(house.request(Method::POST, "/api/v1/files").multipart(form)).await?;
    Ok(answer["items"][0]["id"].as_str().ok_or("the file has no id")?.to_owned())
}

/// What the house uses of the machine.
#[derive(Debug, Default)]
struct Load {
    /// Seconds of a core, of the process with all roles and of the slots' children.
    roles_s: f64,
    slots_s: f64,
    roles_peak_mib: f64,
    /// Of the child that used most.
    slot_peak_mib: f64,
    /// Resident in all of them at one time.
    all_peak_mib: f64,
}

impl Load {
    fn of(house: &House) -> Result<Self, Fault> {
        let mut load = Self {
            roles_s: process_core_s(house.pid())?,
            roles_peak_mib: status_mib(house.pid(), "VmHWM:")?,
            all_peak_mib: status_mib(house.pid(), "VmRSS:")?,
            ..Self::default()
        };
        for pid in children(house.pid())? {
            load.slots_s += process_core_s(pid)?;
            load.slot_peak_mib = load.slot_peak_mib.max(status_mib(pid, "VmHWM:")?);
            load.all_peak_mib += status_mib(pid, "VmRSS:")?;
        }
        Ok(load)
    }
}

/// Waits for the end of the job; the load then, and the seconds of a child's attempt in the median.
async fn wait(house: &House, url: &str, id: &str) -> Result<(Load, f64), Fault> {
    let mut connection = PgConnection::connect(url).await?;
    let is_over = "select exists (select from jobs.job_history where id = $1::uuid)";
    let deadline = Instant::now() + DONE_WITHIN;
    let mut all_peak_mib = 0.0_f64;
    while !sqlx::query_scalar(is_over).bind(id).fetch_one(&mut connection).await? {
        all_peak_mib = all_peak_mib.max(Load::of(house)?.all_peak_mib);
        if Instant::now() > deadline {
            return Err(format!("the batch did not end within {} s", DONE_WITHIN.as_secs()).into());
        }
        tokio::time::sleep(POLL).await;
    }
    let load = Load { all_peak_mib, ..Load::of(house)? };
    let seconds = sqlx::query_scalar(
        "select percentile_cont(0.5) within group (order by (result::jsonb ->> 'seconds')::double precision)
         from jobs.job_history
         where task = 'generate_3d_model'",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok((load, seconds))
}

/// The slots' children of a house.
fn children(parent: u32) -> Result<Vec<u32>, Fault> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{parent}/task"))? {
        let list = fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
        children.extend(list.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    Ok(children)
}

fn process_core_s(pid: u32) -> Result<f64, Fault> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name stands in parentheses and may hold anything; the fields follow the last one.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).ok_or("/proc tells no time");
    Ok((ticks(11)? + ticks(12)?) / TICKS_PER_S)
}

fn status_mib(pid: u32, name: &str) -> Result<f64, Fault> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("/proc tells no memory")?;
    let kib: f64 = line.split_whitespace().next().unwrap_or_default().parse()?;
    Ok(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_has_used_memory_and_time() {
        let pid = std::process::id();
        assert!(status_mib(pid, "VmHWM:").expect("/proc is there") > 0.0);
        assert!(process_core_s(pid).expect("/proc is there") >= 0.0);
    }
}
