//! Bytes in and out.

use gateway::Settings;
use reqwest::{
    Response, StatusCode,
    multipart::{Form, Part},
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::house::{House, PATIENCE, Person, pointers, problem, until};

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR";

fn part(name: &str, bytes: &[u8]) -> Part {
    Part::bytes(bytes.to_vec()).file_name(name.to_owned())
}

async fn upload(house: &House, who: &Person, form: Form) -> Response {
    house.post("/api/v1/files").bearer_auth(&who.token).multipart(form).send().await.unwrap()
}

/// Uploads one file and gives its id and digest.
async fn stored(house: &House, who: &Person, name: &str, bytes: &[u8]) -> (String, String) {
    let answer = upload(house, who, Form::new().part("file", part(name, bytes))).await;
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    let file = &body["items"][0];
    (file["id"].as_str().unwrap().to_owned(), file["sha256"].as_str().unwrap().to_owned())
}

/// An upload that failed has left neither rows nor bytes.
async fn nothing_left(house: &House, before: usize) {
    until(&house.jobs.abandoned, |ids| ids.len() > before).await;
    assert!(house.jobs.uploads.lock().is_empty());
    assert_eq!(house.stored(), Vec::<String>::new());
}

#[tokio::test]
async fn files_are_stored_whole_and_known_by_their_bytes() {
    let house = House::open().await;
    let ada = house.customer();
    // More than a few parts of the storage, and no multiple of anything.
    let large: Vec<u8> = (0..5_000_001_u32).map(|n| (n % 251) as u8).collect();
    let liar = part("../../notes.png", b"only words").mime_str("image/png").unwrap();
    let form = Form::new()
        .part("file", part("ça\"va.png", PNG))
        .part("file", liar)
        .part("file", part("big", &large))
        .part("file", part("empty", b""));
    let answer = upload(&house, &ada, form).await;
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    let told = |at: usize| {
        let file = &body["items"][at];
        (file["name"].as_str().unwrap(), file["content_type"].as_str().unwrap(), file["size_bytes"].as_u64().unwrap())
    };
    assert_eq!(told(0), ("ça\"va.png", "image/png", 16));
    assert_eq!(told(1), ("notes.png", "text/plain; charset=utf-8", 10));
    assert_eq!(told(2), ("big", "application/octet-stream", 5_000_001));
    assert_eq!(told(3), ("empty", "application/octet-stream", 0));
    let names: Vec<&str> = body["items"][0].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["content_type", "created_at", "id", "name", "sha256", "size_bytes"]);
    // `sha256sum` of nothing.
    assert_eq!(body["items"][3]["sha256"], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

    let id = body["items"][2]["id"].as_str().unwrap();
    let answer = house.get(&format!("/api/v1/files/{id}/content")).bearer_auth(&ada.token).send().await.unwrap();
    assert_eq!(answer.bytes().await.unwrap(), large);
}

#[tokio::test]
async fn one_bad_part_leaves_none_of_the_files() {
    let house = House::open().await;
    let ada = house.customer();
    let form = Form::new().part("file", part("a.png", PNG)).part("picture", part("b.png", PNG));
    let told = problem(upload(&house, &ada, form).await, 400, "files.unknown_part").await;
    assert_eq!(pointers(&told), [("/picture".to_owned(), "unknown".to_owned())]);
    nothing_left(&house, 0).await;

    *house.jobs.file_bytes_max.lock() = 20;
    let form = Form::new().part("file", part("a.png", PNG)).part("file", part("b", &[1; 21]));
    problem(upload(&house, &ada, form).await, 413, "files.too_large").await;
    nothing_left(&house, 1).await;

    *house.jobs.quota_left_bytes.lock() = 30;
    let form = Form::new().part("file", part("a", &[1; 16])).part("file", part("b", &[1; 16]));
    problem(upload(&house, &ada, form).await, 413, "files.quota_exceeded").await;
    nothing_left(&house, 2).await;
}

#[tokio::test]
async fn an_upload_without_a_file_or_without_sense_is_refused() {
    let house = House::open().await;
    let ada = house.customer();
    let post = || house.post("/api/v1/files").bearer_auth(&ada.token);
    let answer =
        post().header("content-type", "multipart/form-data; boundary=x").body("--x--\r\n").send().await.unwrap();
    let told = problem(answer, 422, "files.missing").await;
    assert_eq!(pointers(&told), [("/file".to_owned(), "required".to_owned())]);
    let answer =
        post().header("content-type", "multipart/form-data; boundary=x").body("what is this").send().await.unwrap();
    problem(answer, 400, "files.malformed_multipart").await;
    // Cut in the middle of a file, though the message itself is whole.
    let cut = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc";
    let answer = post().header("content-type", "multipart/form-data; boundary=x").body(cut).send().await.unwrap();
    problem(answer, 400, "files.malformed_multipart").await;
    nothing_left(&house, 0).await;
    let endless = format!("--x\r\nx-head: {}", "h".repeat(9 * 1024 * 1024));
    let answer = post().header("content-type", "multipart/form-data; boundary=x").body(endless).send().await.unwrap();
    problem(answer, 400, "files.malformed_multipart").await;
    let answer = post().json(&serde_json::json!({"file": "x"})).send().await.unwrap();
    problem(answer, 415, "request.unsupported_media_type").await;
}

/// The head of an upload that promises more than is sent, and the beginning of its file.
async fn half_an_upload(house: &House, who: &Person) -> TcpStream {
    let mut socket = TcpStream::connect(house.socket()).await.unwrap();
    let part = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabc";
    let head = format!(
        "POST /api/v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 99999\r\n\
         content-type: multipart/form-data; boundary=x\r\n\r\n{part}",
        who.token
    );
    socket.write_all(head.as_bytes()).await.unwrap();
    until(&house.jobs.reserves, |count| *count > 0).await;
    socket
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_nothing_behind() {
    let house = House::open().await;
    let ada = house.customer();
    drop(half_an_upload(&house, &ada).await);
    nothing_left(&house, 0).await;
}

#[tokio::test]
async fn a_client_that_stalls_is_told_and_leaves_nothing_behind() {
    let house = House::with(Settings { stall_s: 1, ..Settings::default() }).await;
    let ada = house.customer();
    let mut socket = half_an_upload(&house, &ada).await;
    let mut heard = vec![0; 4096];
    let count = timeout(PATIENCE, socket.read(&mut heard)).await.unwrap().unwrap();
    assert!(heard[..count].starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&heard[..count]));
    nothing_left(&house, 0).await;
}

/// An upload whose body is sent piece by piece, as `drive` says.
async fn upload_in_pieces(house: &House, who: &Person, drive: impl AsyncFnOnce(Pieces)) -> Response {
    let (pieces, body) = mpsc::channel(4);
    let request = house
        .post("/api/v1/files")
        .bearer_auth(&who.token)
        .header("content-type", "multipart/form-data; boundary=x")
        .body(reqwest::Body::wrap_stream(ReceiverStream::new(body)));
    let (answer, ()) = tokio::join!(request.send(), drive(Pieces(pieces)));
    answer.unwrap()
}

struct Pieces(mpsc::Sender<std::io::Result<&'static str>>);

impl Pieces {
    async fn send(&self, piece: &'static str) {
        self.0.send(Ok(piece)).await.unwrap();
    }
}

const FIRST_HALF: &str = "--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nab";
const SECOND_HALF: &str =
    "c\r\n--x\r\ncontent-disposition: form-data; name=\"file\"; filename=\"b\"\r\n\r\n\r\n--x--\r\n";

/// Waits until the gateway refuses someone with this code.
async fn refused(house: &House, who: &Person, code: &str) {
    let waiting = async {
        loop {
            let answer = house.get("/api/v1/me").bearer_auth(&who.token).send().await.unwrap();
            if answer.status() == StatusCode::UNAUTHORIZED {
                break problem(answer, 401, code).await;
            }
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

/// Someone whose token is over as soon as a verifier, which bears with clocks that differ by 5 s, says so.
fn short_lived(house: &House) -> Person {
    let ada = house.customer();
    Person { token: house.token(ada.id, ada.session, "customer", 0), ..ada }
}

#[tokio::test]
async fn an_upload_that_lasts_longer_than_its_token_is_completed() {
    let house = House::open().await;
    let ada = short_lived(&house);
    let answer = upload_in_pieces(&house, &ada, async |pieces| {
        pieces.send(FIRST_HALF).await;
        until(&house.jobs.reserves, |count| *count > 0).await;
        refused(&house, &ada, "auth.token_expired").await;
        pieces.send(SECOND_HALF).await;
    })
    .await;
    assert_eq!(answer.status(), 201);
    let body: Value = answer.json().await.unwrap();
    assert_eq!((&body["items"][0]["size_bytes"], &body["items"][1]["size_bytes"]), (&Value::from(3), &Value::from(0)));
    assert_eq!(house.jobs.last_call().subject, ada.id);
}

#[tokio::test]
async fn an_upload_whose_session_ends_is_refused_with_its_next_bytes() {
    let house = House::open().await;
    let ada = house.customer();
    let answer = upload_in_pieces(&house, &ada, async |pieces| {
        pieces.send(FIRST_HALF).await;
        until(&house.jobs.reserves, |count| *count > 0).await;
        house.auth.end(ada.session).await;
        refused(&house, &ada, "auth.session_ended").await;
        pieces.send(SECOND_HALF).await;
    })
    .await;
    problem(answer, 401, "auth.session_ended").await;
    nothing_left(&house, 0).await;
    assert_eq!(*house.jobs.reserves.borrow(), 1, "its second file was not begun");
}

#[tokio::test]
async fn an_upload_whose_session_ends_after_its_last_byte_is_not_completed() {
    let house = House::open().await;
    let ada = house.customer();
    let answer = upload_in_pieces(&house, &ada, async |pieces| {
        house.jobs.gate.send_replace(false);
        pieces.send(FIRST_HALF).await;
        pieces.send(SECOND_HALF).await;
        drop(pieces);
        // The second file, which is empty, waits for its row.
        until(&house.jobs.waiting, |count| *count > 0).await;
        house.auth.end(ada.session).await;
        refused(&house, &ada, "auth.session_ended").await;
        house.jobs.gate.send_replace(true);
    })
    .await;
    problem(answer, 401, "auth.session_ended").await;
    nothing_left(&house, 0).await;
}

#[tokio::test]
async fn an_end_that_was_not_told_while_the_feed_was_lost_holds_for_an_upload_without_a_token() {
    let house = House::open().await;
    let ada = short_lived(&house);
    let answer = upload_in_pieces(&house, &ada, async |pieces| {
        pieces.send(FIRST_HALF).await;
        until(&house.jobs.reserves, |count| *count > 0).await;
        house.auth.break_feed();
        refused(&house, &ada, "auth.token_expired").await;
        house.auth.end(ada.session).await;
        pieces.send(SECOND_HALF).await;
        drop(pieces);
        house.auth.mend_feed();
    })
    .await;
    problem(answer, 401, "auth.session_ended").await;
    nothing_left(&house, 0).await;
}

#[tokio::test]
async fn with_the_feed_lost_auth_is_asked_about_an_upload_once_more_at_its_end() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    house.auth.break_feed();
    while *house.auth.checks.borrow() == 0 {
        assert_eq!(house.get("/api/v1/me").bearer_auth(&bob.token).send().await.unwrap().status(), 200);
    }
    let answer = upload_in_pieces(&house, &ada, async |pieces| {
        pieces.send(FIRST_HALF).await;
        until(&house.jobs.reserves, |count| *count > 0).await;
        house.auth.end(ada.session).await;
        pieces.send(SECOND_HALF).await;
    })
    .await;
    problem(answer, 401, "auth.session_ended").await;
    nothing_left(&house, 0).await;
    stored(&house, &bob, "a", b"a").await;
}

#[tokio::test]
async fn uploads_beyond_the_bound_are_refused() {
    let house = House::with(Settings { uploads_max: 1, ..Settings::default() }).await;
    let ada = house.customer();
    let half = half_an_upload(&house, &ada).await;
    let answer = upload(&house, &ada, Form::new().part("file", part("a", b"a"))).await;
    problem(answer, 503, "busy").await;
    drop(half);
    nothing_left(&house, 0).await;
    stored(&house, &ada, "a", b"a").await;
}

#[tokio::test]
async fn one_users_uploads_leave_room_for_anothers() {
    let house = House::with(Settings { uploads_max: 2, ..Settings::default() }).await;
    let (ada, ben) = (house.customer(), house.customer());
    let half = half_an_upload(&house, &ada).await;
    let answer = upload(&house, &ada, Form::new().part("file", part("a", b"a"))).await;
    problem(answer, 503, "busy").await;
    stored(&house, &ben, "b", b"b").await;
    drop(half);
}

#[tokio::test]
async fn a_key_stands_for_the_names_and_bytes_of_an_upload() {
    let house = House::open().await;
    let ada = house.customer();
    let digest = async |name: &'static str, bytes: &'static [u8]| {
        let form = Form::new().part("file", part(name, bytes));
        let request =
            house.post("/api/v1/files").bearer_auth(&ada.token).header("idempotency-key", "k").multipart(form);
        assert_eq!(request.send().await.unwrap().status(), 201);
        house.jobs.last_call().idempotency.unwrap().digest
    };
    let first = digest("a", b"abc").await;
    // The boundary differs each time, and does not count.
    assert_eq!(digest("a", b"abc").await, first);
    assert_ne!(digest("b", b"abc").await, first);
    assert_ne!(digest("a", b"abd").await, first);

    *house.jobs.replays.lock() = true;
    let form = Form::new().part("file", part("a", b"abc"));
    let request = house.post("/api/v1/files").bearer_auth(&ada.token).header("idempotency-key", "k").multipart(form);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["idempotent-replayed"], "true");
}

#[tokio::test]
async fn a_file_is_downloaded_whole_in_part_or_not_at_all() {
    let house = House::open().await;
    let ada = house.customer();
    let (id, sha256) = stored(&house, &ada, "naïve;.txt", b"0123456789").await;
    let etag = format!("\"{sha256}\"");
    let get = |headers: &[(&'static str, &str)]| {
        let mut request = house.get(&format!("/api/v1/files/{id}/content")).bearer_auth(&ada.token);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send()
    };

    let answer = get(&[]).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    let head = answer.headers().clone();
    assert_eq!(head["etag"], etag.as_str());
    assert_eq!(head["accept-ranges"], "bytes");
    assert_eq!(head["content-length"], "10");
    assert_eq!(head["content-type"], "text/plain; charset=utf-8");
    assert_eq!(head["x-content-type-options"], "nosniff");
    assert_eq!(head["content-disposition"], "attachment; filename=\"na_ve_.txt\"; filename*=UTF-8''na%C3%AFve%3B.txt");
    assert!(head["content-security-policy"].to_str().unwrap().contains("sandbox"));
    assert_eq!(answer.text().await.unwrap(), "0123456789");

    for (range, shown, part) in [
        ("bytes=0-0", "bytes 0-0/10", "0"),
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=-2", "bytes 8-9/10", "89"),
        ("bytes=5-500", "bytes 5-9/10", "56789"),
    ] {
        let answer = get(&[("range", range)]).await.unwrap();
        assert_eq!(
            (answer.status(), answer.headers()["content-range"].to_str().unwrap()),
            (StatusCode::PARTIAL_CONTENT, shown)
        );
        assert_eq!(answer.headers()["content-length"], part.len().to_string().as_str());
        assert_eq!(answer.text().await.unwrap(), part, "{range}");
    }
    let answer = get(&[("range", "bytes=10-")]).await.unwrap();
    assert_eq!(answer.headers()["content-range"], "bytes */10");
    problem(answer, 416, "files.range_not_satisfiable").await;
    for whole in ["bytes=0-1,4-5", "lines=1-2", "bytes=5-2"] {
        assert_eq!(get(&[("range", whole)]).await.unwrap().status(), StatusCode::OK, "{whole}");
    }

    for tag in [etag.as_str(), "*", &format!("\"x\", W/{etag}")] {
        let answer = get(&[("if-none-match", tag)]).await.unwrap();
        assert_eq!(
            (answer.status(), answer.headers()["etag"].to_str().unwrap()),
            (StatusCode::NOT_MODIFIED, etag.as_str())
        );
        assert_eq!(answer.text().await.unwrap(), "");
    }
    assert_eq!(get(&[("if-none-match", "\"x\"")]).await.unwrap().status(), StatusCode::OK);
    let part = get(&[("range", "bytes=0-1"), ("if-range", &etag)]).await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    for stale in ["\"x\"", &format!("W/{etag}"), "Tue, 15 Nov 1994 12:45:26 GMT"] {
        assert_eq!(
            get(&[("range", "bytes=0-1"), ("if-range", stale)]).await.unwrap().status(),
            StatusCode::OK,
            "{stale}"
        );
    }
    let answer = house
        .client
        .head(format!("{}/api/v1/files/{id}/content", house.url))
        .bearer_auth(&ada.token)
        .send()
        .await
        .unwrap();
    assert_eq!((answer.status(), answer.headers()["content-length"].to_str().unwrap()), (StatusCode::OK, "10"));
}

#[tokio::test]
async fn a_file_is_its_owners_alone() {
    let house = House::open().await;
    let (ada, bob) = (house.customer(), house.customer());
    let (id, _) = stored(&house, &ada, "a", b"a").await;
    for path in ["", "/content"] {
        let path = format!("/api/v1/files/{id}{path}");
        assert_eq!(house.get(&path).bearer_auth(&ada.token).send().await.unwrap().status(), 200);
        problem(house.get(&path).bearer_auth(&bob.token).send().await.unwrap(), 404, "files.not_found").await;
    }
}
