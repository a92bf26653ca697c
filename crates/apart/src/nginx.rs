//! How nginx is found, told and run. The part of its configuration that production shares is `nginx/` at the top of the
//! tree; here stands what is of this machine: where it may write, that it stays in the foreground, two addresses.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kit::private_server::account::Account;
use kit::private_server::confine::confine;
use kit::private_server::home::{Home, make_dir};
use kit::private_server::keeper::{Restart, Server};
use kit::private_server::log::Log;
use kit::private_server::{PlaceError, Product, leftovers, search};
use nix::sys::signal::Signal;

use crate::Error;

pub(crate) const NGINX: Product =
    Product { name: "nginx", slug: "nginx", users: &["www-data", "nginx", "http", "nobody"] };

const TEMPLATE: &str = include_str!("../../../nginx/guildhall.conf.template");

/// Where nginx is when `PATH` does not say, as an ordinary user's may not.
const DIRS: [&str; 4] = ["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin"];

#[derive(Debug)]
pub(crate) struct Nginx {
    home: Home,
    account: Account,
    program: PathBuf,
    configuration: PathBuf,
    log: Log,
}

impl Nginx {
    /// Writes the configuration and has nginx check it; blocking.
    pub(crate) fn prepare(data_dir: &Path, http: SocketAddr, gateways: &[u16]) -> Result<Self, Error> {
        let home = Home::claim(data_dir, &NGINX)?;
        let account = home.account()?;
        let program = find(&account).ok_or(Error::NoNginx)?;
        let state = home.state();
        if !state.exists() {
            make_dir(&state, 0o700)?;
            account.own(&state)?;
        }
        // Not in its state, where its user could lay a link for a root to write through.
        let (main, site) = (home.dir().join("nginx.conf"), home.dir().join("nginx-site.conf"));
        let write = |path: &Path, text: String| {
            fs::write(path, text).map_err(PlaceError::io(format!("write {}", path.display())))
        };
        write(&site, fill_in(http, gateways))?;
        write(&main, main_configuration(&site))?;
        make_dir(&data_dir.join("logs"), 0o700)?;
        let nginx = Self { home, account, program, configuration: main, log: Log::new(log(data_dir)) };
        nginx.clear()?;
        nginx.check()?;
        Ok(nginx)
    }

    fn run(&self) -> Command {
        let mut command = Command::new(&self.program);
        // SIGTERM: killed, it would leave its worker processes behind.
        confine(&mut command, &self.account, Signal::SIGTERM);
        // The state is where it works and what its relative paths are relative to.
        let state = self.home.state();
        command.current_dir(&state).arg("-p").arg(&state).arg("-c").arg(&self.configuration).args(["-e", "stderr"]);
        command
    }

    fn check(&self) -> Result<(), Error> {
        let output = self.run().arg("-t").stdin(Stdio::null()).output().map_err(PlaceError::io("run nginx"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::NginxConfiguration { said: String::from_utf8_lossy(&output.stderr).trim().to_owned() })
    }
}

impl Server for Nginx {
    fn name(&self) -> &str {
        NGINX.name
    }

    fn restart(&self) -> Restart {
        Restart::Always
    }

    fn log(&self) -> &Log {
        &self.log
    }

    fn command(&self) -> Command {
        self.run()
    }

    /// A killed nginx leaves its worker processes, which keep its port.
    fn clear(&self) -> Result<(), PlaceError> {
        leftovers::end(&self.home.state(), NGINX.name, &["nginx"], Signal::SIGTERM)
    }

    fn leave(self) {}
}

/// Where its log is.
pub(crate) fn log(data_dir: &Path) -> PathBuf {
    data_dir.join("logs/nginx.log")
}

fn find(account: &Account) -> Option<PathBuf> {
    let mut dirs = search::in_path("nginx");
    dirs.extend(DIRS.map(PathBuf::from));
    dirs.into_iter().map(|dir| dir.join("nginx")).find(|program| program.is_file() && account.can_reach(program))
}

fn fill_in(http: SocketAddr, gateways: &[u16]) -> String {
    let servers = gateways.iter().map(|port| format!("server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;"));
    TEMPLATE
        .replace("${GUILDHALL_LISTEN}", &http.to_string())
        .replace("${GUILDHALL_GATEWAYS}", &servers.collect::<Vec<_>>().join(" "))
}

fn main_configuration(site: &Path) -> String {
    format!(
        "daemon off;\n\
         worker_processes 2;\n\
         pid nginx.pid;\n\
         error_log stderr warn;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
         \x20   # The gateways tell of each request.\n\
         \x20   access_log off;\n\
         \x20   client_body_temp_path body;\n\
         \x20   proxy_temp_path proxy;\n\
         \x20   fastcgi_temp_path fastcgi;\n\
         \x20   uwsgi_temp_path uwsgi;\n\
         \x20   scgi_temp_path scgi;\n\
         \x20   include \"{}\";\n\
         }}\n",
        site.display().to_string().replace('\\', "\\\\").replace('"', "\\\"")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_filled_in_whole() {
        let site = fill_in(SocketAddr::from(([127, 0, 0, 1], 8080)), &[1, 2]);

        let left = site.lines().filter(|line| !line.trim_start().starts_with('#')).find(|line| line.contains("${"));
        assert_eq!(left, None);
        assert!(site.contains("server 127.0.0.1:2 max_fails=1"), "{site}");
    }
}
