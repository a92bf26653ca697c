//! The types a setting can have, and how each is written.

use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr};

use crate::Secret;

/// A type that a setting's text can be parsed into.
pub trait Value: Sized {
    /// # Errors
    /// A clause that says what the text must be, such as "must be a whole number".
    fn parse(text: &str) -> Result<Self, String>;

    /// The value as it would be written in a variable; a secret's is `***`.
    fn show(&self) -> String;
}

macro_rules! numbers {
    ($($type:ty => $what:literal),*) => {$(
        impl Value for $type {
            fn parse(text: &str) -> Result<Self, String> {
                text.trim().parse().map_err(|_| format!(concat!("must be ", $what, ", not `{}`"), text))
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}
numbers!(u16 => "a whole number up to 65535", u32 => "a whole number", u64 => "a whole number", usize => "a whole number", f64 => "a number");

impl Value for bool {
    fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            "true" | "1" | "on" | "yes" => Ok(true),
            "false" | "0" | "off" | "no" => Ok(false),
            _ => Err(format!("must be `true` or `false`, not `{text}`")),
        }
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }
    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse().map_err(|_| format!("must be an address and port such as 127.0.0.1:8080, not `{text}`"))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for crate::telemetry::LogFormat {
    fn parse(text: &str) -> Result<Self, String> {
        text.trim().parse()
    }
    fn show(&self) -> String {
        match self {
            Self::Auto => "auto",
            Self::Text => "text",
            Self::Json => "json",
        }
        .to_owned()
    }
}

impl Value for Secret {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(Self::new(text.to_owned()))
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl<T: Value> Value for Option<T> {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(None) } else { T::parse(text).map(Some) }
    }
    fn show(&self) -> String {
        self.as_ref().map(Value::show).unwrap_or_default()
    }
}

impl Value for Vec<String> {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect())
    }
    fn show(&self) -> String {
        self.join(",")
    }
}

/// A number of bytes, written plainly or with a unit: `1048576`, `512KiB`, `2GiB`, `10MB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("must be a number of bytes such as `512MiB`, not `{text}`");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        number.checked_mul(factor).map(Self).ok_or_else(wrong)
    }
}

impl Value for Bytes {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }
    fn show(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (factor, unit) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{unit}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}
