//! nginx with one process, on a free port of loopback: it answers at once, passes on to the gateway, or takes an upload
//! in. Its log of requests is on, as the gateway's is.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use kit::ports::{self, Held};
use tokio::process::{Child, Command};

use crate::{Fault, ground::Ground};

const READY_WITHIN: Duration = Duration::from_secs(10);
const READY_POLL: Duration = Duration::from_millis(20);

/// A running nginx; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    url: String,
    uploads: PathBuf,
    /// Held, not read.
    _port: Held,
}

impl Nginx {
    /// Starts one before the gateway at `gateway`, which also answers at `/static` with a file of so many bytes.
    ///
    /// # Errors
    /// nginx is not there, or does not start.
    pub(crate) async fn start(ground: &Ground, gateway: &str, static_bytes: usize) -> Result<Self, Fault> {
        let folder = ground.empty_folder("nginx")?;
        let uploads = folder.join("uploads");
        fs::create_dir(&uploads)?;
        // nginx cannot tell which port it was given.
        let [port] = ports::free()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.port()));
        let gateway = gateway.trim_start_matches("http://");
        fs::write(folder.join("static"), "x".repeat(static_bytes))?;
        let configuration = format!(
            "daemon off; master_process off; pid nginx.pid; error_log stderr;
             events {{ worker_connections 1024; }}
             http {{
               access_log access.log;
               client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
               scgi_temp_path scgi;
               default_type application/json;
               keepalive_requests 10000000;
               upstream gateway {{ server {gateway}; keepalive 64; keepalive_requests 10000000; }}
               server {{
                 listen {address};
                 root {root};
                 location = /static {{ open_file_cache max=1; sendfile on; }}
                 location /uploads/ {{ dav_methods PUT; client_max_body_size 0; }}
                 location /api/ {{ proxy_pass http://gateway; proxy_http_version 1.1; proxy_set_header Connection ''; }}
               }}
             }}",
            root = folder.display()
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration)?;
        // Packages put it where the path of an ordinary user does not lead.
        let program = Path::new("/usr/sbin/nginx");
        let child = Command::new(if program.exists() { program } else { Path::new("nginx") })
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&file)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("nginx: {error}"))?;
        let url = format!("http://{address}");
        let up = async {
            while tokio::net::TcpStream::connect(address).await.is_err() {
                tokio::time::sleep(READY_POLL).await;
            }
        };
        tokio::time::timeout(READY_WITHIN, up).await.map_err(|_| "nginx did not start")?;
        Ok(Self { child, url, uploads, _port: port })
    }

    /// Of a path of its own or the gateway's.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Where uploads land.
    pub(crate) fn uploads(&self) -> &Path {
        &self.uploads
    }

    /// Ends it.
    ///
    /// # Errors
    /// As the system.
    pub(crate) async fn stop(mut self) -> Result<(), Fault> {
        Ok(self.child.kill().await?)
    }
}
