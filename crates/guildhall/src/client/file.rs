//! Files: uploaded in groups with their bytes counted, downloaded whole or not at all, listed, removed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use indicatif::ProgressBar;
use reqwest::{
    Body,
    multipart::{Form, Part},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio_util::io::ReaderStream;

use super::{
    Outcome,
    api::{Api, TRIES_LARGE, patiently},
    args::{FileArgs, FileVerb, PageArgs},
    error::Error,
    interrupt::Interrupts,
    live::Live,
    screen::{Manner, Screen, Tone},
    table::{Cell, Column, Table},
    words,
};

/// One request carries at most so many files and, but for a single larger file, bytes: a broken connection costs no more
/// than that to send again.
const GROUP_FILES_MAX: usize = 32;
const GROUP_BYTES_MAX: u64 = 64 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// A file of the server.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct File {
    pub(super) id: String,
    #[serde(default)]
    pub(super) name: String,
    #[serde(default)]
    pub(super) content_type: String,
    #[serde(default)]
    pub(super) size_bytes: u64,
    pub(super) created_at: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Deserialize)]
struct Uploaded {
    items: Vec<File>,
}

/// Something to upload.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) name: String,
    pub(super) size_bytes: u64,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Path(PathBuf),
    Bytes(Bytes),
}

impl Upload {
    pub(super) fn of_bytes(name: String, bytes: Bytes) -> Self {
        Self { name, size_bytes: bytes.len() as u64, content: Content::Bytes(bytes) }
    }

    /// The files at `paths`.
    ///
    /// # Errors
    /// [`Error::Usage`] naming every path that is no readable file, before anything is sent.
    pub(super) fn of_paths(paths: &[PathBuf]) -> Result<Vec<Self>, Error> {
        let mut uploads = Vec::with_capacity(paths.len());
        let mut faults = Vec::new();
        for path in paths {
            match std::fs::File::open(path).and_then(|file| file.metadata()) {
                Ok(metadata) if metadata.is_file() => {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    uploads.push(Self { name, size_bytes: metadata.len(), content: Content::Path(path.clone()) });
                }
                Ok(metadata) if metadata.is_dir() => faults.push(format!("{} is a directory", path.display())),
                Ok(_) => faults.push(format!("{} is no regular file", path.display())),
                Err(fault) => faults.push(format!("{}: {fault}", path.display())),
            }
        }
        match faults.as_slice() {
            [] => Ok(uploads),
            [one] => Err(Error::Usage(format!("{one}. Nothing was uploaded."))),
            many => Err(Error::Usage(format!("Nothing was uploaded:\n  {}", many.join("\n  ")))),
        }
    }

    /// The bytes once more from their start, counted on `bar` as they leave.
    fn part(&self, bar: &ProgressBar) -> Part {
        let bar = bar.clone();
        let body = match &self.content {
            Content::Bytes(bytes) => {
                let bytes = bytes.clone();
                let chunks = (0..bytes.len()).step_by(CHUNK_BYTES).map(move |start| {
                    let end = (start + CHUNK_BYTES).min(bytes.len());
                    Ok::<_, std::io::Error>(bytes.slice(start..end))
                });
                Body::wrap_stream(
                    stream::iter(chunks.collect::<Vec<_>>()).inspect_ok(move |chunk| bar.inc(chunk.len() as u64)),
                )
            }
            Content::Path(path) => {
                let chunks = stream::once(tokio::fs::File::open(path.clone()))
                    .map_ok(|file| ReaderStream::with_capacity(file, CHUNK_BYTES))
                    .try_flatten();
                Body::wrap_stream(chunks.inspect_ok(move |chunk: &Bytes| bar.inc(chunk.len() as u64)))
            }
        };
        Part::stream_with_length(body, self.size_bytes).file_name(self.name.clone())
    }
}

/// Uploads everything, in order, and gives the server's files in the same order.
///
/// # Errors
/// Those of the requests. What was uploaded before a failure stays.
pub(super) async fn upload(api: &Api, uploads: &[Upload], bar: &ProgressBar) -> Result<Vec<File>, Error> {
    let mut files = Vec::with_capacity(uploads.len());
    for group in groups(uploads) {
        let counted = bar.position();
        // One key for every try: a group that arrived although its answer was lost is not stored twice.
        let key = api.clock().new_id().to_string();
        let sent: Uploaded = patiently(TRIES_LARGE, async || {
            let url = api.url(&["files"], &[]);
            let response = api.send(|http| {
                bar.set_position(counted);
                let form = group.iter().fold(Form::new(), |form, upload| form.part("file", upload.part(bar)));
                http.post(url.clone()).header("idempotency-key", &key).multipart(form)
            });
            api.answer(response.await?).await
        })
        .await?;
        if sent.items.len() != group.len() {
            return Err(Error::Failed(format!("{} files were sent and {} arrived.", group.len(), sent.items.len())));
        }
        files.extend(sent.items);
    }
    Ok(files)
}

/// What an upload is called while it lasts.
pub(super) fn uploading(uploads: &[Upload]) -> String {
    format!("uploading {}", words::counted(uploads.len() as u64, "file"))
}

fn groups(uploads: &[Upload]) -> Vec<&[Upload]> {
    let mut groups = Vec::new();
    let mut start = 0;
    let mut bytes = 0;
    for (place, upload) in uploads.iter().enumerate() {
        if place > start && (place - start == GROUP_FILES_MAX || bytes + upload.size_bytes > GROUP_BYTES_MAX) {
            groups.push(&uploads[start..place]);
            (start, bytes) = (place, 0);
        }
        bytes += upload.size_bytes;
    }
    if start < uploads.len() {
        groups.push(&uploads[start..]);
    }
    groups
}

/// Downloads a file to `to`, which holds the whole of it or is not touched.
///
/// # Errors
/// Those of the request; [`Error::Local`].
pub(super) async fn download(api: &Api, id: &str, to: &Path, bar: &ProgressBar) -> Result<u64, Error> {
    let name = to.file_name().ok_or_else(|| Error::Usage(format!("{} is no name for a file.", to.display())))?;
    let part = to.with_file_name(format!(".{}.part", name.to_string_lossy()));
    let written = patiently(TRIES_LARGE, async || fetch(api, id, &part, bar).await).await;
    if written.is_err() {
        // It may not have come so far as to exist.
        let _absent = tokio::fs::remove_file(&part).await;
    }
    let written = written?;
    tokio::fs::rename(&part, to).await.map_err(Error::local(to))?;
    Ok(written)
}

async fn fetch(api: &Api, id: &str, part: &Path, bar: &ProgressBar) -> Result<u64, Error> {
    let url = api.url(&["files", id, "content"], &[]);
    let mut chunks = api.send(|http| http.get(url.clone())).await?.bytes_stream();
    let mut file = tokio::fs::File::create(part).await.map_err(Error::local(part))?;
    let mut written = 0;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|fault| {
            bar.set_position(bar.position().saturating_sub(written));
            api.broken(&fault)
        })?;
        file.write_all(&chunk).await.map_err(Error::local(part))?;
        written += chunk.len() as u64;
        bar.inc(chunk.len() as u64);
    }
    file.flush().await.map_err(Error::local(part))?;
    Ok(written)
}

pub(super) async fn run(args: FileArgs, screen: &Screen) -> Result<Outcome, Error> {
    let api = Api::open(&args.common.url)?;
    let act = async {
        match args.verb {
            FileVerb::Upload { files } => put(&api, &files, screen).await,
            FileVerb::List(page) => list(&api, &page, screen).await,
            FileVerb::Download { id, output } => take(&api, &id, output, screen).await,
            FileVerb::Remove { ids } => remove(&api, &ids, screen).await,
        }
    };
    Interrupts::listen()?.end("Interrupted.", act).await
}

async fn put(api: &Api, paths: &[PathBuf], screen: &Screen) -> Result<Outcome, Error> {
    let uploads = Upload::of_paths(paths)?;
    let live = Live::on(screen);
    let bar = live.bytes(uploading(&uploads), uploads.iter().map(|upload| upload.size_bytes).sum());
    let files = upload(api, &uploads, &bar).await;
    live.remove(&bar);
    let files = files?;
    match screen.manner {
        Manner::Json => {
            let items: Vec<Value> = files.iter().map(|file| serde_json::json!({ "id": file.id, "name": file.name, "content_type": file.content_type, "size_bytes": file.size_bytes })).collect();
            screen.print_json(&serde_json::json!({ "items": items }));
        }
        Manner::Quiet => files.iter().for_each(|file| screen.print(&words::plain(&file.id))),
        Manner::Told => screen.print(&table(api, &files).render(screen)),
    }
    Ok(Outcome::Done)
}

async fn list(api: &Api, page: &PageArgs, screen: &Screen) -> Result<Outcome, Error> {
    super::lists::page(api, &["files"], &[], page, screen, |files: &[File]| table(api, files), |file| &file.id).await
}

async fn take(api: &Api, id: &str, output: Option<PathBuf>, screen: &Screen) -> Result<Outcome, Error> {
    let file: File = api.get(&["files", id], &[]).await?;
    let to = output.unwrap_or_else(|| words::file_name(&file.name, "file").into());
    let live = Live::on(screen);
    let bar = live.bytes(format!("downloading {}", words::plain(&file.name)), file.size_bytes);
    let written = download(api, id, &to, &bar).await;
    live.remove(&bar);
    let written = written?;
    match screen.manner {
        Manner::Json => screen.print_json(&serde_json::json!({ "id": file.id, "path": to, "size_bytes": written })),
        Manner::Quiet => screen.print(&to.display().to_string()),
        Manner::Told => screen.print(&format!("{} ({})", to.display(), words::bytes(written))),
    }
    Ok(Outcome::Done)
}

async fn remove(api: &Api, ids: &[String], screen: &Screen) -> Result<Outcome, Error> {
    for id in ids {
        api.delete(&["files", id]).await?;
        screen.note(&format!("Removed {}.", words::plain(id)));
    }
    if screen.manner == Manner::Json {
        screen.print_json(&serde_json::json!({ "removed": ids }));
    }
    Ok(Outcome::Done)
}

fn table(api: &Api, files: &[File]) -> Table {
    let columns = [
        Column::left("id"),
        Column::flexible("name"),
        Column::left("type"),
        Column::right("size"),
        Column::left("made"),
    ];
    let mut table = Table::new(columns);
    for file in files {
        let made = file.created_at.map(|at| words::age(at, api.clock().now())).unwrap_or_default();
        let (kind, size) = (file.content_type.as_str(), words::bytes(file.size_bytes));
        table.row([(&file.id).into(), (&file.name).into(), kind.into(), size.into(), Cell::new(made, Tone::Dim)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_size(size_bytes: u64) -> Upload {
        Upload { name: "x".into(), size_bytes, content: Content::Bytes(Bytes::new()) }
    }

    #[test]
    fn a_group_is_bounded_in_files_and_bytes_and_loses_none() {
        let small: Vec<_> = (0..70).map(|_| of_size(10)).collect();
        assert_eq!(groups(&small).iter().map(|group| group.len()).collect::<Vec<_>>(), [32, 32, 6]);
        let large: Vec<_> = [GROUP_BYTES_MAX * 3, 1, GROUP_BYTES_MAX, GROUP_BYTES_MAX - 1, 1].map(of_size).into();
        assert_eq!(groups(&large).iter().map(|group| group.len()).collect::<Vec<_>>(), [1, 1, 1, 2]);
        assert!(groups(&[]).is_empty());
    }

    #[test]
    fn every_path_that_cannot_be_sent_is_named_before_anything_is() {
        let place = tempfile::tempdir().unwrap();
        let good = place.path().join("a.png");
        std::fs::write(&good, "x").unwrap();
        let fault = Upload::of_paths(&[good.clone(), place.path().join("none.png"), place.path().into()]).unwrap_err();
        assert_eq!(fault.exit_code(), 64);
        assert!(fault.to_string().contains("none.png") && fault.to_string().contains("is a directory"), "{fault}");
        let [upload] = Upload::of_paths(&[good]).unwrap().try_into().unwrap();
        assert_eq!((upload.name.as_str(), upload.size_bytes), ("a.png", 1));
    }
}
