//! Makes one relief by hand: `cargo run -p tasks --example relief -- IN OUT.glb [PARAMS AS JSON]`.
//!
//! Writes the preview beside the model, as `OUT.png`, and tells progress and times on standard error.

#![allow(clippy::print_stderr, reason = "a command line is all that this example is")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use tasks::providers::relief;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let (Some(input), Some(output)) = (args.next().map(PathBuf::from), args.next().map(PathBuf::from)) else {
        return Err("usage: relief IN OUT.glb [PARAMS AS JSON]".into());
    };
    let params = match args.next() {
        Some(json) => serde_json::from_str(json.to_str().ok_or("the parameters are not UTF-8")?)?,
        None => relief::Params::default(),
    };
    let start = Instant::now();
    let model = relief::make(&input, &params, &mut |percent, stage| {
        eprintln!("{:>6} ms {percent:>3} % {stage}", start.elapsed().as_millis());
    })?;
    std::fs::write(output.with_extension("png"), &model.preview_png)?;
    std::fs::write(&output, &model.glb)?;
    eprintln!("{} triangles, {} vertices, {} bytes", model.triangles, model.vertices, model.glb.len());
    Ok(())
}
