//! Values that must not be shown: [`Secret`] is what lets somebody in, [`Personal`] is what tells who somebody is. Either
//! prints as `***` wherever it lands: logs, traces, panics, `{:?}` of a settings struct.

use std::fmt;

macro_rules! masked {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Default)]
        pub struct $name<T = String>(T);

        impl<T> $name<T> {
            pub const fn new(value: T) -> Self {
                Self(value)
            }
            /// The value itself, for the one call that needs it.
            pub const fn expose(&self) -> &T {
                &self.0
            }
            /// Gives it away, as to a row or an answer.
            pub fn into_exposed(self) -> T {
                self.0
            }
        }

        impl<T> From<T> for $name<T> {
            fn from(value: T) -> Self {
                Self(value)
            }
        }
        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("***")
            }
        }
        impl<T> fmt::Display for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("***")
            }
        }
    };
}

masked! {
    /// What lets somebody in: a password, a token, a key. [`expose`](Self::expose) is the one way to it, and easy to search
    /// for.
    Secret
}

masked! {
    /// What tells who somebody is or where: an e-mail address, a name, an address on the network. Logs and traces name
    /// people by their ids.
    Personal
}
