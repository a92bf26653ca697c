//! Opening a storage from its URL.

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, local::LocalFileSystem, path::Path,
    prefix::PrefixStore,
};
use url::Url;

use super::Storage;
use crate::{Fail, Secret};

/// A part sent to S3 must have at least 5 MiB unless it is the last, and an object has at most 10,000 of them.
const S3_PART_BYTES: usize = 5 * 1024 * 1024;
const FILE_PART_BYTES: usize = 1024 * 1024;
const S3_TRIES_MAX: usize = 3;
const S3_RETRY_WITHIN: Duration = Duration::from_secs(15);
const S3_REQUEST_WITHIN: Duration = Duration::from_secs(60);
const S3_REGION: &str = "us-east-1";

pub(super) fn open(text: &str, access_key: Option<&Secret>, secret_key: Option<&Secret>) -> Result<Storage, Fail> {
    let url = Url::parse(text).map_err(|error| fault(format!("The storage URL does not parse: {error}.")))?;
    match url.scheme() {
        "file" => folder(text, &url),
        "s3" => s3(&url, access_key, secret_key),
        scheme => Err(fault(format!("The storage URL must begin with `file:` or `s3:`, not with `{scheme}:`."))),
    }
}

fn folder(text: &str, url: &Url) -> Result<Storage, Fail> {
    // A URL without its three slashes would name a folder by a relative path, and be taken from the root.
    let absolute = Some(url).filter(|_| text.starts_with("file:///")).and_then(|url| url.to_file_path().ok());
    let folder: PathBuf = absolute.ok_or_else(|| {
        fault("A `file:` storage URL must name an absolute folder of this machine: `file:///srv/guildhall/files`.")
    })?;
    let cannot = |error: String| fault(format!("The storage folder {} cannot be used: {error}.", folder.display()));
    std::fs::create_dir_all(&folder).map_err(|error| cannot(error.to_string()))?;
    let store = LocalFileSystem::new_with_prefix(&folder)
        .map_err(|error| cannot(error.to_string()))?
        // Without it, a finished object is lost with the machine's page cache.
        .with_fsync(true)
        .with_automatic_cleanup(true);
    Ok(Storage { store: Arc::new(store), part_bytes: FILE_PART_BYTES, folder: Some(folder) })
}

fn s3(url: &Url, access_key: Option<&Secret>, secret_key: Option<&Secret>) -> Result<Storage, Fail> {
    let bucket = url.host_str().filter(|bucket| !bucket.is_empty());
    let bucket = bucket.ok_or_else(|| fault("An `s3:` storage URL names its bucket: `s3://bucket/prefix`."))?;
    let (Some(access_key), Some(secret_key)) = (access_key, secret_key) else {
        return Err(fault("An `s3:` storage needs `storage_access_key` and `storage_secret_key`."));
    };
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: S3_TRIES_MAX, retry_timeout: S3_RETRY_WITHIN };
    let mut client = ClientOptions::new().with_timeout(S3_REQUEST_WITHIN);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(S3_REGION)
        .with_access_key_id(access_key.expose())
        .with_secret_access_key(secret_key.expose())
        .with_retry(retry);
    for (name, value) in url.query_pairs() {
        match &*name {
            "endpoint" => {
                client = client.with_allow_http(value.starts_with("http://"));
                builder = builder.with_endpoint(value);
            }
            "region" => builder = builder.with_region(value),
            _ => return Err(fault(format!("An `s3:` storage URL takes `endpoint` and `region`, not `{name}`."))),
        }
    }
    let store = builder
        .with_client_options(client)
        .build()
        .map_err(|error| fault(format!("The `s3:` storage URL cannot be used: {error}.")))?;
    let prefix = Path::from_url_path(url.path())
        .map_err(|error| fault(format!("The storage URL's prefix cannot be used: {error}.")))?;
    let store: Arc<dyn ObjectStore> =
        if prefix.as_ref().is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) };
    Ok(Storage { store, part_bytes: S3_PART_BYTES, folder: None })
}

fn fault(sentence: impl Into<String>) -> Fail {
    Fail::invalid("config.storage_url", sentence)
}
