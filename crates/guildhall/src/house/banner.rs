//! What is said on standard output when the house is open.

use std::{path::Path, time::Duration};

use super::{Administrator, Opened};
use crate::{roles::Roles, say, settings::Settings};

/// What there is to say.
#[derive(Debug)]
pub(crate) struct Banner<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) roles: &'a Roles,
    pub(crate) opened: &'a Opened,
    pub(crate) data_dir: &'a Path,
    /// How long opening took.
    pub(crate) took: Duration,
}

impl Banner<'_> {
    pub(crate) fn print(&self) {
        let (good, strong, dim) = (say::good(), say::strong(), say::dim());
        say::line("");
        say::line(format_args!(
            "  {good}Guildhall {} is open{good:#}  {dim}after {:.1} s{dim:#}",
            env!("CARGO_PKG_VERSION"),
            self.took.as_secs_f64()
        ));
        say::line("");
        if !self.roles.is_up {
            row("roles", &self.roles.to_string(), "");
        }
        if let Some(public_url) = self.opened.public_url.as_ref().filter(|_| self.opened.http.is_some()) {
            row("api", &format!("{strong}{public_url}{strong:#}"), "");
            row("reference", &format!("{public_url}/api/docs"), "");
        }
        for (role, url) in &self.opened.grpc {
            row(role, url, "gRPC");
        }
        row("metrics", &format!("{}/metrics", self.opened.ops), "");
        let is_private = self.roles.is_up && self.settings.process.database_url.is_none();
        let database = match (is_private, self.roles.services().next()) {
            (true, _) => "with a private Postgres",
            (false, Some(_)) => "the database is elsewhere",
            (false, None) => "",
        };
        row("data", &self.data_dir.display().to_string(), database);
        if let Some(administrator) = &self.opened.administrator {
            sign_in(administrator);
        }
        // One that was just built is seldom on the path.
        if let (true, Ok(program)) = (self.roles.is_up, std::env::current_exe()) {
            row("client", &program.display().to_string(), "--help tells its commands");
        }
        row("stop", "Ctrl-C", "drains first; once more stops at once");
        say::line("");
    }
}

fn sign_in(administrator: &Administrator) {
    let strong = say::strong();
    let email = &administrator.email;
    match (&administrator.new_password, &administrator.file) {
        (Some(password), Some(file)) => {
            row("sign in", email, "");
            let note = format!("shown once; kept in {}", file.display());
            row("password", &format!("{strong}{}{strong:#}", password.expose()), &note);
        }
        (Some(_), None) => row("sign in", email, "with the password of GUILDHALL_ADMIN_PASSWORD"),
        (None, Some(file)) => row("sign in", email, &format!("password in {}", file.display())),
        (None, None) if administrator.is_missing => {
            row("sign in", "nobody is administrator", "start once with GUILDHALL_ADMIN_PASSWORD");
        }
        (None, None) => {}
    }
}

fn row(name: &str, value: &str, note: &str) {
    let dim = say::dim();
    match note {
        "" => say::line(format_args!("  {dim}{name:<9}{dim:#} {value}")),
        note => say::line(format_args!("  {dim}{name:<9}{dim:#} {value}  {dim}{note}{dim:#}")),
    }
}
