//! What `up` says on standard output when the house is open, and when it closes.

use std::path::Path;

use crate::say;

/// What there is to say.
#[derive(Debug)]
pub(super) struct Banner<'a> {
    pub(super) public_url: &'a str,
    pub(super) ops_url: &'a str,
    pub(super) data_dir: &'a Path,
    /// Whose database it is: ours, or the one of `database_url`.
    pub(super) is_private_database: bool,
    pub(super) admin_email: &'a str,
    /// The password that was made at this start, to be shown once.
    pub(super) new_password: Option<&'a str>,
    /// Where that password was kept, when it was ever made here.
    pub(super) password_file: Option<&'a Path>,
    pub(super) seconds: f64,
}

impl Banner<'_> {
    pub(super) fn print(&self) {
        let (good, strong, dim) = (say::good(), say::strong(), say::dim());
        let row = |name: &str, value: &str, note: &str| match note {
            "" => say::line(format_args!("  {dim}{name:<9}{dim:#} {value}")),
            note => say::line(format_args!("  {dim}{name:<9}{dim:#} {value}  {dim}{note}{dim:#}")),
        };
        let database = if self.is_private_database { "with a private Postgres" } else { "the database is elsewhere" };
        say::line("");
        say::line(format_args!(
            "  {good}Guildhall {} is open{good:#}  {dim}after {:.1} s{dim:#}",
            env!("CARGO_PKG_VERSION"),
            self.seconds
        ));
        say::line("");
        row("api", &format!("{strong}{}{strong:#}", self.public_url), "");
        row("reference", &format!("{}/api/docs", self.public_url), "");
        row("metrics", &format!("{}/metrics", self.ops_url), "");
        row("data", &self.data_dir.display().to_string(), database);
        match (self.new_password, self.password_file) {
            (Some(password), Some(file)) => {
                row("sign in", self.admin_email, "");
                let note = format!("shown once; kept in {}", file.display());
                row("password", &format!("{strong}{password}{strong:#}"), &note);
            }
            (Some(_), None) => row("sign in", self.admin_email, "with the password of GUILDHALL_ADMIN_PASSWORD"),
            (None, Some(file)) => row("sign in", self.admin_email, &format!("password in {}", file.display())),
            (None, None) => {}
        }
        // One that was just built is seldom on the path.
        if let Ok(program) = std::env::current_exe() {
            row("client", &program.display().to_string(), "--help tells its commands");
        }
        row("stop", "Ctrl-C", "drains first; once more stops at once");
        say::line("");
    }
}
