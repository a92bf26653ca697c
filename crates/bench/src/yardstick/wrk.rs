//! The load: wrk, with one thread and a fixed number of connections, each asking again as soon as it is answered. A
//! generator of our own would take more of the machine that it shares with what it measures.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::Fault;

const CONNECTIONS: u32 = 64;
/// What it needs to start and to end.
const SLACK: Duration = Duration::from_secs(30);

/// What it saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Seen {
    pub(crate) requests_per_s: f64,
    pub(crate) p99_ms: f64,
}

/// Asks for `url` for `seconds`, showing `token`.
///
/// # Errors
/// wrk is not there, or one answer was no success.
pub(crate) async fn run(url: &str, token: &str, seconds: u32) -> Result<Seen, Fault> {
    let mut wrk = Command::new("wrk");
    wrk.args(["--threads", "1", "--latency"])
        .args(["--connections", &CONNECTIONS.to_string()])
        .args(["--duration", &format!("{seconds}s")])
        .args(["--header", &format!("authorization: Bearer {token}")])
        .arg(url)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let limit = Duration::from_secs(seconds.into()) + SLACK;
    let output = tokio::time::timeout(limit, wrk.output()).await?.map_err(|error| format!("wrk: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        return Err(format!("wrk ended with {}: {said}", output.status).into());
    }
    read(&said)
}

fn read(said: &str) -> Result<Seen, Fault> {
    let value = |name: &str| {
        let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
        line.map(str::trim).ok_or_else(|| format!("wrk does not say `{name}`: {said}"))
    };
    for bad in ["Non-2xx or 3xx responses:", "Socket errors:"] {
        if let Ok(count) = value(bad) {
            return Err(format!("wrk says `{bad} {count}`").into());
        }
    }
    let requests_per_s = value("Requests/sec:")?.parse()?;
    Ok(Seen { requests_per_s, p99_ms: milliseconds(value("99%")?)? })
}

fn milliseconds(text: &str) -> Result<f64, Fault> {
    for (unit, ms) in [("us", 0.001), ("ms", 1.0), ("s", 1000.0)] {
        if let Some(Ok(number)) = text.strip_suffix(unit).map(str::parse::<f64>) {
            return Ok(number * ms);
        }
    }
    Err(format!("`{text}` is no span of time").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.71ms    0.90ms  21.24ms   95.17%
  Latency Distribution
     50%  640.00us
     99%    3.40ms
  336999 requests in 5.00s, 61.07MB read
Requests/sec:  67392.91
Transfer/sec:     12.21MB
";

    #[test]
    fn what_wrk_says_is_read() {
        assert_eq!(read(SAID).expect("it is whole"), Seen { requests_per_s: 67392.91, p99_ms: 3.4 });
        assert_eq!(milliseconds("640.00us").expect("a span"), 0.64);
        assert_eq!(milliseconds("1.20s").expect("a span"), 1200.0);
    }

    #[test]
    fn an_answer_that_is_no_success_spoils_the_run() {
        let said = format!("{SAID}  Non-2xx or 3xx responses: 3\n");
        assert!(read(&said).is_err());
    }
}
