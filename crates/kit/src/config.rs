//! Settings: declared once as a struct, read from `guildhall.toml` and the environment, every fault reported at once.
//!
//! [`settings!`](crate::settings) declares a struct whose fields each have a doc comment and a default. The field
//! `http_listen` is the key `http_listen` of the file and the variable `GUILDHALL_HTTP_LISTEN`; a variable wins over the
//! file, and `GUILDHALL_HTTP_LISTEN_FILE` names a file that holds the value, as secrets are mounted; a setting whose own
//! name ends in `_file` is the path itself. The same declarations print the commented default file.

mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::Path,
};

pub use value::{Bytes, Value};

const PREFIX: &str = "GUILDHALL_";

/// One declared setting.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    pub name: &'static str,
    pub default: &'static str,
    /// The lines of its doc comment.
    pub doc: &'static [&'static str],
}

/// Everything that was said about settings, before any of it is understood.
#[derive(Debug, Default)]
pub struct Source {
    said: BTreeMap<String, Said>,
    /// Of variables that end in `_FILE`, by the rest of their names: variable and path.
    from_files: BTreeMap<String, (String, String)>,
    faults: Vec<String>,
    known: BTreeSet<&'static str>,
}

#[derive(Debug)]
struct Said {
    text: String,
    /// How to name the place in a fault: `GUILDHALL_HTTP_LISTEN` or `http_listen in guildhall.toml`.
    place: String,
}

impl Source {
    /// Reads the file, if it is there, then the variables over it. `is_required` makes an absent file a fault.
    pub fn read(file: &Path, is_required: bool, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut source = Self::default();
        match std::fs::read_to_string(file) {
            Ok(text) => source.read_toml(&text, &file.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !is_required => {}
            Err(error) => source.faults.push(format!("{} cannot be read: {error}", file.display())),
        }
        source.read_variables(variables);
        source
    }

    /// Whether `name` was said at all, by file or variable.
    pub fn says(&self, name: &str) -> bool {
        self.said.contains_key(name) || self.from_files.contains_key(name)
    }

    /// Where `name` was said: `GUILDHALL_HTTP_LISTEN`, or `http_listen in guildhall.toml`.
    pub fn place(&self, name: &str) -> Option<&str> {
        self.said.get(name).map(|said| said.place.as_str())
    }

    /// Takes one setting, or notes what is wrong with it and takes its default.
    pub fn take<T: Value>(&mut self, field: &'static Field) -> T {
        self.known.insert(field.name);
        self.look_into_file(field.name);
        if let Some(said) = self.said.get(field.name) {
            match T::parse(&said.text) {
                Ok(value) => return value,
                Err(reason) => self.faults.push(format!("{}: {reason}", said.place)),
            }
        }
        default(field)
    }

    /// Notes a fault that only the whole can show, such as two settings that contradict each other.
    pub fn fault(&mut self, sentence: impl Into<String>) {
        self.faults.push(sentence.into());
    }

    /// Every fault there is, unknown settings among them; none is a good configuration.
    pub fn into_faults(mut self) -> Vec<String> {
        for (variable, _) in self.from_files.values() {
            self.faults.push(format!("{variable}: there is no such setting"));
        }
        for (name, said) in &self.said {
            if !self.known.contains(name.as_str()) {
                self.faults.push(format!("{}: there is no such setting", said.place));
            }
        }
        self.faults
    }

    fn read_toml(&mut self, text: &str, file: &str) {
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => return self.faults.push(format!("{file} does not parse: {}", error.message())),
        };
        for (name, value) in table {
            let place = format!("{name} in {file}");
            let text = match value {
                toml::Value::String(text) => text,
                toml::Value::Array(items) if items.iter().all(toml::Value::is_str) => {
                    items.iter().filter_map(toml::Value::as_str).collect::<Vec<_>>().join(",")
                }
                toml::Value::Table(_) | toml::Value::Array(_) => {
                    self.faults.push(format!("{place}: must be one value or a list of strings"));
                    continue;
                }
                other => other.to_string(),
            };
            self.said.insert(name, Said { text, place });
        }
    }

    fn read_variables(&mut self, variables: impl IntoIterator<Item = (String, String)>) {
        for (variable, text) in variables {
            let Some(name) = variable.strip_prefix(PREFIX).map(str::to_ascii_lowercase) else { continue };
            // The client's own, and those of `./dev` and the tests.
            let is_ours = !["url", "password"].contains(&name.as_str())
                && !["dev_", "test_", "gltf_"].iter().any(|prefix| name.starts_with(prefix));
            if !is_ours {
                continue;
            }
            match name.strip_suffix("_file") {
                Some(stem) => drop(self.from_files.insert(stem.to_owned(), (variable, text))),
                None => drop(self.said.insert(name, Said { text, place: variable })),
            }
        }
    }

    /// Takes what a variable ending in `_FILE` says about the setting `name`.
    fn look_into_file(&mut self, name: &str) {
        if let Some(stem) = name.strip_suffix("_file")
            && let Some((variable, path)) = self.from_files.remove(stem)
        {
            // The setting is a path, and no other that holds it is meant.
            self.said.insert(name.to_owned(), Said { text: path, place: variable });
        }
        let Some((variable, path)) = self.from_files.remove(name) else { return };
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let text = text.trim_end_matches(['\r', '\n']).to_owned();
                if self.said.get(name).is_some_and(|said| said.place.starts_with(PREFIX)) {
                    self.faults.push(format!("{variable}: its value is given twice, directly and by file"));
                }
                self.said.insert(name.to_owned(), Said { text, place: variable });
            }
            Err(error) => self.faults.push(format!("{variable}: {path} cannot be read: {error}")),
        }
    }
}

/// A field's default, as its type.
pub fn default<T: Value>(field: &Field) -> T {
    match T::parse(field.default) {
        Ok(value) => value,
        // A default stands in the source, and every `Settings` has a test that takes it.
        Err(reason) => panic!("the default of `{}` is not valid: {reason}", field.name),
    }
}

/// The commented default file, one section a part.
pub fn default_file(parts: &[(&str, &[Field])]) -> String {
    let mut file = String::from(
        "# Every setting of Guildhall with its default. A line that is commented out shows the default; take the `#` away\n\
         # to change it. The variable GUILDHALL_<NAME> wins over this file, GUILDHALL_<NAME>_FILE reads the value from a file.\n",
    );
    for (title, fields) in parts {
        let _ = write!(file, "\n# --- {title} ---\n");
        for field in *fields {
            file.push('\n');
            for line in field.doc {
                let _ = writeln!(file, "#{line}");
            }
            let _ = writeln!(file, "#{} = {:?}", field.name, field.default);
        }
    }
    file
}

/// Declares a settings struct: each field with a doc comment (what it is, its unit, why the default) and a default,
/// written as it would be written in a variable.
#[macro_export]
macro_rules! settings {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $( $(#[doc = $doc:literal])+ $fvis:vis $field:ident : $type:ty = $default:literal ),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        $vis struct $name { $( $(#[doc = $doc])+ $fvis $field: $type, )* }

        impl $name {
            /// Every setting declared here.
            $vis const FIELDS: &'static [$crate::config::Field] = &[
                $( $crate::config::Field { name: stringify!($field), default: $default, doc: &[$($doc),+] }, )*
            ];

            /// Takes the settings from what was said, noting faults there.
            $vis fn take(source: &mut $crate::config::Source) -> Self {
                let mut fields = Self::FIELDS.iter();
                $( let $field: $type = match fields.next() {
                    Some(field) => source.take(field),
                    None => unreachable!("FIELDS is made of the same list"),
                }; )*
                Self { $( $field, )* }
            }

            /// Each setting's name with its value as it would be written in a variable; secrets show `***`.
            $vis fn values(&self) -> Vec<(&'static str, String)> {
                vec![ $( (stringify!($field), $crate::config::Value::show(&self.$field)), )* ]
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::take(&mut $crate::config::Source::default())
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Secret;

    settings! {
        /// For the tests below.
        struct Sample {
            /// Where to listen.
            listen: std::net::SocketAddr = "127.0.0.1:8080",
            /// Largest file, in bytes.
            file_bytes_max: Bytes = "2GiB",
            /// A secret that may be absent.
            key: Option<Secret> = "",
            /// Origins.
            origins: Vec<String> = "",
            /// A path.
            cert_file: Option<std::path::PathBuf> = "",
        }
    }

    fn read(toml: &str, variables: &[(&str, &str)]) -> (Sample, Vec<String>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("guildhall.toml");
        std::fs::write(&file, toml).expect("a file");
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut source = Source::read(&file, true, variables);
        let sample = Sample::take(&mut source);
        (sample, source.into_faults())
    }

    #[test]
    fn a_variable_wins_over_the_file_and_the_file_over_the_default() {
        let (sample, faults) = read(
            "listen = '127.0.0.1:1'\nfile_bytes_max = 5\norigins = ['a', 'b']",
            &[("GUILDHALL_LISTEN", "127.0.0.1:2")],
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(sample.listen.port(), 2);
        assert_eq!(sample.file_bytes_max, Bytes(5));
        assert_eq!(sample.origins, ["a", "b"]);
        let shown =
            [("listen", "127.0.0.1:2"), ("file_bytes_max", "5"), ("key", ""), ("origins", "a,b"), ("cert_file", "")];
        assert_eq!(sample.values(), shown.map(|(name, value)| (name, value.to_owned())));
        assert!(sample.key.is_none());
    }

    #[test]
    fn every_fault_is_told_at_once_and_by_its_place() {
        let (_, faults) = read(
            "colour = 'red'",
            &[
                ("GUILDHALL_LISTEN", "here"),
                ("GUILDHALL_FILE_BYTES_MAX", "much"),
                ("GUILDHALL_KEY_FILE", "/does/not/exist"),
            ],
        );
        assert_eq!(faults.len(), 4, "{faults:#?}");
        for place in ["GUILDHALL_LISTEN", "GUILDHALL_FILE_BYTES_MAX", "GUILDHALL_KEY_FILE", "colour in "] {
            assert!(faults.iter().any(|fault| fault.starts_with(place)), "{place} is missing in {faults:#?}");
        }
    }

    #[test]
    fn a_secret_is_read_from_its_file_and_not_shown() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("key");
        std::fs::write(&path, "hush\n").expect("a file");
        let (sample, faults) = read("", &[("GUILDHALL_KEY_FILE", path.to_str().expect("UTF-8"))]);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(sample.key.as_ref().map(|key| key.expose().as_str()), Some("hush"));
        assert!(!format!("{sample:?}{:?}", sample.values()).contains("hush"));
    }

    #[test]
    fn a_setting_that_is_a_path_is_not_read_from_it() {
        let (sample, faults) = read("", &[("GUILDHALL_CERT_FILE", "/does/not/exist")]);
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(sample.cert_file, Some("/does/not/exist".into()));
        let (_, faults) = read("", &[("GUILDHALL_COLOUR_FILE", "/does/not/exist")]);
        assert_eq!(faults, ["GUILDHALL_COLOUR_FILE: there is no such setting"]);
    }

    #[test]
    fn the_default_file_names_every_setting_and_parses() {
        let file = default_file(&[("sample", Sample::FIELDS)]);
        for field in Sample::FIELDS {
            assert!(file.contains(&format!("#{} = ", field.name)));
        }
        let uncommented: String =
            file.lines().filter(|line| line.contains(" = \"")).map(|line| format!("{}\n", &line[1..])).collect();
        assert!(uncommented.parse::<toml::Table>().is_ok(), "{uncommented}");
    }
}
