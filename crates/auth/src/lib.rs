//! Who is asking: users, credentials, sessions, refresh families and signing keys.
