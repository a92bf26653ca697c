//! Files: uploads, who sees what, the quota, and what an attempt writes.

use bytes::Bytes;
use futures::{TryStreamExt as _, future::join_all};
use kit::{
    Fail,
    config::Bytes as Size,
    grpc::{Call, IdempotencyKey},
    storage::Written,
};
use proto::{
    jobs::{
        AbandonFilesRequest, CompleteFilesRequest, CompleteFilesResponse, CompletedFile, ExtendFilesRequest, File,
        GetFileRequest, ListFilesRequest, RemoveFileRequest, ReserveFilesRequest, ReserveFilesResponse,
        files_client::FilesClient,
    },
    worker::{
        CreateAttemptFileRequest, GetAttemptFileRequest, Succeeded, WrittenFile, attempts_client::AttemptsClient,
        outcome::End,
    },
};
use serde_json::json;
use uuid::Uuid;

use crate::support::{House, User, answer, code, spec, task};

fn client(house: &House) -> FilesClient<kit::grpc::Peer> {
    FilesClient::new(house.peer.clone())
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn begin(house: &House, user: &User, names: &[&str]) -> Result<ReserveFilesResponse, Fail> {
    answer(client(house).reserve(user.call.request(ReserveFilesRequest { names: owned(names) })).await)
}

/// A call that shows no token, as those that show a ticket.
fn nobody() -> Call {
    Call::anonymous("request-1")
}

async fn extend(house: &House, ticket: &str, names: &[&str]) -> Result<ReserveFilesResponse, Fail> {
    let message = ExtendFilesRequest { ticket: ticket.to_owned(), names: owned(names) };
    answer(client(house).extend(nobody().request(message)).await)
}

async fn abandon(house: &House, ticket: &str) -> String {
    code(client(house).abandon(nobody().request(AbandonFilesRequest { ticket: ticket.to_owned() })).await)
}

async fn write(house: &House, key: &str, bytes: &'static [u8]) -> Written {
    let mut writer = house.storage.writer(key).expect("a key");
    writer.write(Bytes::from_static(bytes)).await.expect("room");
    writer.finish().await.expect("written")
}

fn completed(id: &str, written: &Written) -> CompletedFile {
    CompletedFile {
        id: id.to_owned(),
        content_type: "text/plain".to_owned(),
        size_bytes: written.size,
        sha256: written.sha256.clone(),
    }
}

/// As described by a gateway that has written so many bytes.
fn of_size(id: &str, size: u64) -> CompletedFile {
    completed(id, &Written { size, sha256: "0".repeat(64) })
}

async fn complete(house: &House, ticket: &str, files: Vec<CompletedFile>) -> Result<CompleteFilesResponse, Fail> {
    complete_by(house, &nobody(), ticket, files).await
}

async fn complete_by(
    house: &House,
    call: &Call,
    ticket: &str,
    files: Vec<CompletedFile>,
) -> Result<CompleteFilesResponse, Fail> {
    let request = call.request(CompleteFilesRequest { ticket: ticket.to_owned(), files });
    answer(client(house).complete(request).await)
}

/// Stores one file of `size` bytes, as far as the rows can tell.
async fn store(house: &House, user: &User, size: u64) -> Result<File, Fail> {
    let upload = begin(house, user, &["a.txt"]).await?;
    let mut done = complete(house, &upload.ticket, vec![of_size(&upload.items[0].id, size)]).await?;
    Ok(done.items.remove(0))
}

/// Of the files of an upload, in the order they were reserved. Without those that are given up: the service's own sweep
/// may have removed them by now.
async fn states(house: &House, upload: &ReserveFilesResponse) -> Vec<String> {
    sqlx::query_scalar(
        "select state
         from jobs.file
         where upload_id = (select upload_id from jobs.file where id = $1) and state <> 'doomed'
         order by id",
    )
    .bind(Uuid::parse_str(&upload.items[0].id).expect("an id"))
    .fetch_all(house.pool())
    .await
    .expect("rows")
}

async fn usage(house: &House, user: &User) -> i64 {
    sqlx::query_scalar("select bytes from jobs.file_usage where owner_id = $1")
        .bind(user.id)
        .fetch_one(house.pool())
        .await
        .expect("a count")
}

async fn get(house: &House, user: &User, id: &str) -> Result<File, Fail> {
    answer(client(house).get(user.call.request(GetFileRequest { id: id.to_owned() })).await)
}

async fn remove(house: &House, user: &User, id: &str) -> String {
    code(client(house).remove(user.call.request(RemoveFileRequest { id: id.to_owned() })).await)
}

async fn list(house: &House, user: &User, limit: u32, cursor: &str) -> Result<(Vec<String>, String), Fail> {
    let request = user.call.request(ListFilesRequest { limit, cursor: cursor.to_owned() });
    let page = answer(client(house).list(request).await)?;
    Ok((page.items.into_iter().map(|file| file.id).collect(), page.next_cursor))
}

#[tokio::test]
async fn an_upload_is_there_once_it_is_complete_and_not_before() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["../a\n.txt", "b.png"]).await.expect("reserved");
    let (first, second) = (&upload.items[0], &upload.items[1]);
    assert_eq!((upload.lease_s, upload.file_bytes_max), (900, 2 << 30));
    assert_eq!(upload.quota_left_bytes, 50 << 30);

    let written = [write(&house, &first.storage_key, b"hello").await, write(&house, &second.storage_key, b"").await];
    assert_eq!(get(&house, &user, &first.id).await.expect_err("it is not whole").code(), "files.not_found");
    assert_eq!(list(&house, &user, 0, "").await.expect("a list").0, [""; 0]);

    let files = vec![completed(&second.id, &written[1]), completed(&first.id, &written[0])];
    let done = complete(&house, &upload.ticket, files).await.expect("complete");
    assert!(!done.replayed);
    let ids: Vec<&str> = done.items.iter().map(|file| file.id.as_str()).collect();
    assert_eq!(ids, [&second.id, &first.id], "in the order they were named");

    let file = get(&house, &user, &first.id).await.expect("there");
    assert_eq!(file, done.items[1]);
    assert_eq!((file.name.as_str(), file.content_type.as_str(), file.size_bytes), ("a.txt", "text/plain", 5));
    assert_eq!((file.sha256.as_str(), file.owner_id), (written[0].sha256.as_str(), user.id.to_string()));
    let bytes: Vec<Bytes> =
        house.storage.read(&file.storage_key, None).await.expect("bytes").try_collect().await.expect("bytes");
    assert_eq!(bytes.concat(), b"hello");
    assert_eq!(usage(&house, &user).await, 5);
}

#[tokio::test]
async fn a_list_is_newest_first_and_its_pages_join() {
    let house = House::open().await;
    let user = house.user("customer");
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(store(&house, &user, 1).await.expect("stored").id);
    }
    ids.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let (page, next) = list(&house, &user, 2, &cursor).await.expect("a page");
        assert!(page.len() <= 2);
        seen.extend(page);
        cursor = next;
        if cursor.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ids);
    assert_eq!(list(&house, &user, 2, "forged").await.expect_err("no cursor").code(), "invalid_cursor");
}

#[tokio::test]
async fn nobody_without_a_token_reaches_files() {
    let house = House::open().await;
    let nobody = nobody();
    let mut client = client(&house);
    let codes = [
        code(client.reserve(nobody.request(ReserveFilesRequest::default())).await),
        code(client.get(nobody.request(GetFileRequest::default())).await),
        code(client.list(nobody.request(ListFilesRequest::default())).await),
        code(client.remove(nobody.request(RemoveFileRequest::default())).await),
    ];
    assert_eq!(codes, ["auth.required"; 4]);
}

#[tokio::test]
async fn a_strangers_file_is_not_there() {
    let house = House::open().await;
    let (owner, stranger) = (house.user("customer"), house.user("customer"));
    let file = store(&house, &owner, 3).await.expect("stored");
    for id in [file.id.as_str(), "not an id", ""] {
        assert_eq!(get(&house, &stranger, id).await.expect_err("not theirs").code(), "files.not_found");
        assert_eq!(remove(&house, &stranger, id).await, "files.not_found");
    }
    assert_eq!(list(&house, &stranger, 0, "").await.expect("a list").0, [""; 0]);
}

#[tokio::test]
async fn an_upload_goes_on_by_its_ticket_when_its_callers_token_is_gone() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a"]).await.expect("reserved");
    let further = extend(&house, &upload.ticket, &["b"]).await.expect("one more");
    assert_eq!(further.ticket, upload.ticket, "it is the same upload");
    let files = vec![of_size(&upload.items[0].id, 3), of_size(&further.items[0].id, 4)];
    let done = complete(&house, &upload.ticket, files).await.expect("complete");
    assert_eq!(done.items[1].owner_id, user.id.to_string());
    assert_eq!((states(&house, &upload).await.len(), usage(&house, &user).await), (2, 7));
    get(&house, &user, &done.items[1].id).await.expect("its owner's");
}

#[tokio::test]
async fn only_its_own_ticket_goes_on_with_an_upload() {
    let house = House::open().await;
    let (owner, stranger) = (house.user("customer"), house.user("customer"));
    let upload = begin(&house, &owner, &["a"]).await.expect("reserved");
    let file = &upload.items[0].id;
    let others = begin(&house, &stranger, &["b"]).await.expect("reserved").ticket;
    let own_other = begin(&house, &owner, &["c"]).await.expect("reserved").ticket;
    for ticket in [&others, &own_other] {
        let refusal = complete(&house, ticket, vec![of_size(file, 1)]).await.expect_err("another upload's");
        assert_eq!(refusal.code(), "files.upload_not_found");
        assert_eq!(abandon(&house, ticket).await, "ok", "that one alone");
    }

    // Signed by the same key, as the place where a page of files ends.
    for _ in 0..2 {
        store(&house, &owner, 1).await.expect("stored");
    }
    let cursor = list(&house, &owner, 1, "").await.expect("a page").1;
    assert!(!cursor.is_empty());
    let mut forged = upload.ticket.clone();
    forged.replace_range(..1, if forged.starts_with('A') { "B" } else { "A" });
    for ticket in [cursor.as_str(), forged.as_str(), file.as_str(), "no ticket", ""] {
        let codes = [
            extend(&house, ticket, &["d"]).await.map_or_else(|fail| fail.code().to_owned(), |_| "ok".to_owned()),
            complete(&house, ticket, vec![of_size(file, 1)])
                .await
                .map_or_else(|fail| fail.code().to_owned(), |_| "ok".to_owned()),
            abandon(&house, ticket).await,
        ];
        assert_eq!(codes, ["files.upload_not_found"; 3], "{ticket}");
    }
    let page = list(&house, &owner, 1, &upload.ticket).await.expect_err("no place in a list either");
    assert_eq!(page.code(), "invalid_cursor");
    assert_eq!(states(&house, &upload).await, ["writing"]);
    complete(&house, &upload.ticket, vec![of_size(file, 1)]).await.expect("its own");
}

#[tokio::test]
async fn a_ticket_does_not_outlive_its_upload() {
    let house = House::open().await;
    let user = house.user("customer");
    let done = begin(&house, &user, &["a"]).await.expect("reserved");
    complete(&house, &done.ticket, vec![of_size(&done.items[0].id, 1)]).await.expect("complete");
    let gone = begin(&house, &user, &["a"]).await.expect("reserved");
    assert_eq!(abandon(&house, &gone.ticket).await, "ok");
    for (upload, left) in [(&done, 1), (&gone, 0)] {
        let refusal = extend(&house, &upload.ticket, &["b"]).await.expect_err("it is over");
        assert_eq!(refusal.code(), "files.upload_not_found");
        assert_eq!(states(&house, upload).await.len(), left);
    }
}

#[tokio::test]
async fn an_administrator_sees_any_file_and_an_operator_only_its_own() {
    let house = House::open().await;
    let file = store(&house, &house.user("customer"), 3).await.expect("stored");
    let (operator, admin) = (house.user("operator"), house.user("admin"));
    assert_eq!(get(&house, &operator, &file.id).await.expect_err("not theirs").code(), "files.not_found");
    assert_eq!(get(&house, &admin, &file.id).await.expect("any"), file);
    assert_eq!(list(&house, &admin, 0, "").await.expect("a list").0, std::slice::from_ref(&file.id));
    assert_eq!(remove(&house, &admin, &file.id).await, "ok");
}

#[tokio::test]
async fn an_upload_takes_a_hundred_files_and_not_one_more() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a"; 60]).await.expect("60");
    let refusal = extend(&house, &upload.ticket, &["a"; 41]).await.expect_err("101");
    assert_eq!(refusal.code(), "files.too_many");
    assert_eq!(states(&house, &upload).await.len(), 60, "a refusal reserves nothing");
    extend(&house, &upload.ticket, &["a"; 40]).await.expect("100");
    assert_eq!(extend(&house, &upload.ticket, &[]).await.expect("the lease is extended").items, []);
    assert_eq!(begin(&house, &user, &["a"; 101]).await.expect_err("101 at once").code(), "files.too_many");
    assert_eq!(begin(&house, &user, &[]).await.expect_err("of nothing").code(), "files.no_names");
}

#[tokio::test]
async fn what_does_not_fit_its_description_or_the_limits_is_refused_and_nothing_is_whole() {
    let house = House::with(|settings| {
        settings.file_bytes_max = Size(60);
        settings.owner_bytes_max = Size(100);
    })
    .await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a", "b"]).await.expect("reserved");
    let (a, b) = (upload.items[0].id.as_str(), upload.items[1].id.as_str());
    let stranger = house.clock.new_id().to_string();
    let bad_digest = CompletedFile { sha256: "é".repeat(32), ..of_size(a, 1) };
    let bad_type = CompletedFile { content_type: "a\r\nb".to_owned(), ..of_size(a, 1) };
    for (files, refusal) in [
        (vec![of_size(a, 61)], "files.too_large"),
        (vec![of_size(a, 60), of_size(b, 41)], "files.quota_exceeded"),
        (vec![of_size(a, 1), of_size(a, 1)], "files.not_described"),
        (vec![of_size("7", 1)], "files.not_described"),
        (vec![of_size(a, 1), bad_digest], "files.not_described"),
        (vec![bad_type], "files.not_described"),
        (vec![of_size(a, 1), of_size(&stranger, 1)], "files.upload_not_found"),
        (vec![of_size(a, u64::MAX)], "files.not_described"),
    ] {
        let fail = complete(&house, &upload.ticket, files).await.expect_err(refusal);
        assert_eq!(fail.code(), refusal);
        assert_eq!(states(&house, &upload).await, ["writing", "writing"]);
    }
    complete(&house, &upload.ticket, vec![of_size(a, 60), of_size(b, 40)]).await.expect("exactly the quota");
    let full = begin(&house, &user, &["c"]).await.expect_err("full");
    assert_eq!(full.code(), "files.quota_exceeded");
}

#[tokio::test]
async fn two_uploads_at_once_do_not_exceed_the_quota_together() {
    let house = House::with(|settings| settings.owner_bytes_max = Size(100)).await;
    for _ in 0..10 {
        let user = house.user("customer");
        let answers = join_all((0..4).map(|_| store(&house, &user, 40))).await;
        let codes: Vec<&str> = answers.iter().map(|answer| answer.as_ref().map_or_else(Fail::code, |_| "ok")).collect();
        assert_eq!(codes.iter().filter(|code| **code == "ok").count(), 2, "{codes:?}");
        assert!(codes.iter().all(|code| ["ok", "files.quota_exceeded"].contains(code)), "{codes:?}");
        assert_eq!(usage(&house, &user).await, 80);
    }
}

#[tokio::test]
async fn completing_twice_counts_once() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a", "left out"]).await.expect("reserved");
    let id = upload.items[0].id.as_str();
    let first = complete(&house, &upload.ticket, vec![of_size(id, 7)]).await.expect("complete");
    assert_eq!(states(&house, &upload).await, ["whole"]);
    let again = complete(&house, &upload.ticket, vec![of_size(id, 7)]).await.expect("the same again");
    assert_eq!(first.items, again.items);
    assert_eq!(usage(&house, &user).await, 7);
    let other = complete(&house, &upload.ticket, vec![of_size(id, 8)]).await.expect_err("other bytes");
    assert_eq!(other.code(), "files.upload_not_found");
    assert_eq!(usage(&house, &user).await, 7);
}

/// A call with the owner's idempotency key, which a ticket does not stand in for.
fn keyed(digest: u8) -> Call {
    nobody().with_idempotency(Some(IdempotencyKey { key: "upload-1".to_owned(), digest: [digest; 32] }))
}

#[tokio::test]
async fn the_same_upload_under_the_same_key_is_answered_as_before_and_its_copies_leave() {
    let house = House::open().await;
    let user = house.user("customer");
    let first = begin(&house, &user, &["a"]).await.expect("reserved");
    let files = vec![of_size(&first.items[0].id, 5)];
    let done = complete_by(&house, &keyed(1), &first.ticket, files).await.expect("complete");
    let second = begin(&house, &user, &["a"]).await.expect("reserved");
    let files = vec![of_size(&second.items[0].id, 5)];
    let again = complete_by(&house, &keyed(1), &second.ticket, files).await.expect("replayed");
    assert!(again.replayed && !done.replayed);
    assert_eq!(again.items, done.items);
    assert!(states(&house, &second).await.is_empty());
    assert_eq!(usage(&house, &user).await, 5);

    let other = complete_by(&house, &keyed(2), &second.ticket, vec![]).await.expect_err("another body");
    assert_eq!(other.code(), "idempotency.mismatch");
    let stranger = house.user("customer");
    let theirs = begin(&house, &stranger, &["a"]).await.expect("reserved");
    let files = vec![of_size(&theirs.items[0].id, 5)];
    let done = complete_by(&house, &keyed(1), &theirs.ticket, files).await.expect("a key of their own");
    assert!(!done.replayed);
}

#[tokio::test]
async fn an_upload_whose_twin_is_in_flight_is_told_so() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a"]).await.expect("reserved");
    let mut twin = house.pool().begin().await.expect("a transaction");
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1, 0))")
        .bind(format!("jobs:{}:upload-1", user.id))
        .execute(&mut *twin)
        .await
        .expect("held");
    let files = vec![of_size(&upload.items[0].id, 5)];
    let refusal = complete_by(&house, &keyed(1), &upload.ticket, files.clone()).await.expect_err("in flight");
    assert_eq!(refusal.code(), "idempotency.in_flight");
    twin.rollback().await.expect("given back");
    complete_by(&house, &keyed(1), &upload.ticket, files).await.expect("free again");
}

#[tokio::test]
async fn an_abandoned_upload_cannot_be_completed() {
    let house = House::open().await;
    let user = house.user("customer");
    let upload = begin(&house, &user, &["a"]).await.expect("reserved");
    for _ in 0..2 {
        assert_eq!(abandon(&house, &upload.ticket).await, "ok");
    }
    let refusal = complete(&house, &upload.ticket, vec![of_size(&upload.items[0].id, 5)]).await.expect_err("gone");
    assert_eq!(refusal.code(), "files.upload_not_found");
}

#[tokio::test]
async fn a_removed_file_is_gone_at_once_and_gives_its_quota_back_once() {
    let house = House::with(|settings| settings.owner_bytes_max = Size(100)).await;
    let user = house.user("customer");
    let file = store(&house, &user, 70).await.expect("stored");
    let other = store(&house, &user, 30).await.expect("stored");
    let mut codes = join_all((0..4).map(|_| remove(&house, &user, &file.id))).await;
    codes.sort();
    assert_eq!(codes, ["files.not_found", "files.not_found", "files.not_found", "ok"]);
    assert_eq!(usage(&house, &user).await, 30);
    assert_eq!(get(&house, &user, &file.id).await.expect_err("gone").code(), "files.not_found");
    assert_eq!(list(&house, &user, 0, "").await.expect("a list").0, [other.id]);
    store(&house, &user, 70).await.expect("there is room again");
}

#[tokio::test]
async fn an_attempts_files_become_its_owners_with_the_result() {
    let house = House::open().await;
    let (owner, stranger) = (house.user("customer"), house.user("customer"));
    let input = store(&house, &owner, 3).await.expect("stored");
    let foreign = store(&house, &stranger, 3).await.expect("stored");
    let mut hand = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    house.submit(&owner, spec("demo_echo")).await.expect("taken");
    let job = hand.take().await;
    let mut attempts = AttemptsClient::new(house.peer.clone());

    let read = |file_id: &str| {
        hand.call.request(GetAttemptFileRequest { attempt: job.attempt.clone(), file_id: file_id.to_owned() })
    };
    assert_eq!(answer(attempts.get_file(read(&input.id)).await).expect("the owner's").size_bytes, 3);
    for id in [foreign.id.as_str(), "7"] {
        assert_eq!(code(attempts.get_file(read(id)).await), "jobs.file_not_found");
    }

    let mut created = Vec::new();
    for name in ["../model.glb", "scratch.tmp"] {
        let request = CreateAttemptFileRequest { attempt: job.attempt.clone(), name: name.to_owned() };
        created.push(answer(attempts.create_file(hand.call.request(request)).await).expect("created"));
    }
    assert_eq!(get(&house, &owner, &created[0].id).await.expect_err("not whole").code(), "files.not_found");

    let written = write(&house, &created[0].storage_key, b"mesh").await;
    let files = vec![WrittenFile {
        file_id: created[0].id.clone(),
        content_type: "model/gltf-binary".to_owned(),
        size_bytes: written.size,
        sha256: written.sha256,
    }];
    let receipt = hand.end(&job, End::Succeeded(Succeeded { result_json: "{}".to_owned(), files })).await;
    assert_eq!(receipt.accepted.len(), 1);
    let model = get(&house, &owner, &created[0].id).await.expect("whole");
    assert_eq!((model.name.as_str(), model.size_bytes), ("model.glb", 4));
    assert_eq!(usage(&house, &owner).await, 7);
    assert_eq!(get(&house, &stranger, &created[0].id).await.expect_err("the owner's").code(), "files.not_found");
    assert_eq!(get(&house, &owner, &created[1].id).await.expect_err("not named").code(), "files.not_found");
}
