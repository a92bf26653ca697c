//! What travels between a worker and a slot's child: JSON behind a length of four bytes, most significant first. Both
//! ends are one build of one binary, so the form may change with it.

use std::{
    io::{self, Read, Write},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio_util::codec::LengthDelimitedCodec;

use crate::{
    Ending, Failure,
    context::{Answer, Facts, Question, Told},
};

/// A page of children with long results is the largest frame.
const FRAME_BYTES_MAX: usize = 32 * 1024 * 1024;

/// To the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Down {
    /// The first frame: how much memory the child's data may take.
    Begin {
        bytes_max: u64,
    },
    Run(RunFrame),
    /// To the one question that is open.
    Answer(Result<Answer, Failure>),
    /// The attempt should end.
    Stop,
}

/// One attempt for a child.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RunFrame {
    pub(crate) task: String,
    pub(crate) args: Value,
    pub(crate) facts: Facts,
    pub(crate) scratch: PathBuf,
}

/// From the child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Up {
    Told(Told),
    Question(Question),
    /// The attempt is over. With `is_last` so is the child, which is not fit for another.
    Ended {
        said: Result<Ending, Failure>,
        is_last: bool,
    },
}

/// For the worker's end.
pub(super) fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(FRAME_BYTES_MAX).new_codec()
}

/// For the child's end: the next frame, or `None` where the worker has closed the pipe.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match from.read_exact(&mut length) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        read => read?,
    }
    let length = u32::from_be_bytes(length) as usize;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"));
    }
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// For the child's end.
pub(super) fn write(to: &mut impl Write, frame: &impl Serialize) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, frame)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|&length| length as usize <= FRAME_BYTES_MAX);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a frame is too long"))?;
    bytes[..4].copy_from_slice(&length.to_be_bytes());
    to.write_all(&bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_is_written_is_read_again_and_then_the_pipe_ends() {
        let mut pipe = Vec::new();
        write(&mut pipe, &Down::Begin { bytes_max: 7 }).expect("it fits");
        let mut pipe = pipe.as_slice();
        assert!(matches!(read(&mut pipe), Ok(Some(Down::Begin { bytes_max: 7 }))));
        assert!(matches!(read::<Down>(&mut pipe), Ok(None)));
    }

    #[test]
    fn a_frame_over_the_bound_is_refused_before_it_is_read() {
        let mut pipe: &[u8] = &u32::MAX.to_be_bytes();
        assert!(read::<Down>(&mut pipe).is_err());
    }
}
