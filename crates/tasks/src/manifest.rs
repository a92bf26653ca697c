//! What a batch's manifest says: every model that was made and every job that made none, none left out.
//!
//! Only the shape and its JSON; who fills it in is `finalize_batch`.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The manifest of one finished batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The batch that this is about.
    pub batch_id: Uuid,
    /// How its children ended; the sum is the number of children.
    pub counts: Counts,
    /// Every model, in the order of the archive.
    pub models: Vec<ModelEntry>,
    /// Every child without a model, in the order of submission.
    pub failures: Vec<FailureEntry>,
}

/// How many children of a batch ended in each final state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Children with a model.
    pub succeeded: u64,
    /// Children that failed for good.
    pub failed: u64,
    /// Children that were cancelled.
    pub cancelled: u64,
    /// Children whose time ran out before they could be done.
    pub expired: u64,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// The job that made it.
    pub job_id: Uuid,
    /// The model's own file.
    pub file_id: Uuid,
    /// The preview's file.
    pub preview_file_id: Uuid,
    /// The picture that it was made from.
    pub source_file_id: Uuid,
    /// The picture's name as it was uploaded.
    pub source_name: String,
    /// Name of the model's entry in the archive.
    pub name: String,
    /// SHA-256 of the model's bytes, in lower-case hexadecimal digits.
    pub sha256: String,
    /// Triangles of its mesh.
    pub triangles: u64,
    /// Vertices of its mesh.
    pub vertices: u64,
    /// Size of the model in bytes.
    pub size_bytes: u64,
    /// How long the successful attempt took, in seconds.
    pub seconds: f64,
}

/// One job without a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureEntry {
    /// The job.
    pub job_id: Uuid,
    /// The picture that it was to use; a job of another task may name none.
    pub file_id: Option<Uuid>,
    /// The picture's name, where it was known to be there at all.
    pub source_name: Option<String>,
    /// Kind of the error, `cancelled` and `expired` among them.
    pub kind: String,
    /// What was wrong, for people.
    pub message: String,
}

impl Manifest {
    /// Writes the manifest as indented JSON with a newline at its end.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn write(&self, mut to: impl Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut to, self)?;
        writeln!(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_manifest_reads_back_the_same_and_names_every_failure() {
        let id = Uuid::from_u128;
        let failure = |n: u128| FailureEntry {
            job_id: id(n),
            file_id: Some(id(n + 1000)),
            source_name: n.is_multiple_of(2).then(|| format!("{n}.png")),
            kind: "invalid_input".to_owned(),
            message: "the file is empty (0 bytes)".to_owned(),
        };
        let manifest = Manifest {
            batch_id: id(1),
            counts: Counts { succeeded: 1, failed: 300, cancelled: 0, expired: 0 },
            models: vec![ModelEntry {
                job_id: id(2),
                file_id: id(3),
                preview_file_id: id(4),
                source_file_id: id(5),
                source_name: "gear.png".to_owned(),
                name: "001-gear.glb".to_owned(),
                sha256: "00".repeat(32),
                triangles: 12,
                vertices: 8,
                size_bytes: 1024,
                seconds: 0.25,
            }],
            failures: (0..300).map(failure).collect(),
        };
        let mut json = Vec::new();
        manifest.write(&mut json).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&json).unwrap(), manifest);
        assert_eq!(json.last(), Some(&b'\n'));
    }
}
