//! Passwords: what may be one, and hashing them with Argon2id. Hashing is the one thing here that an outsider can make
//! us spend a core on, so it runs off the async threads, a bounded number at a time with a bounded queue before them.
//!
//! Nothing here stores a hash or knows whose it is.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use kit::{Fail, Secret, fail::Violation};
use tokio::sync::{Semaphore, oneshot};
use unicode_normalization::UnicodeNormalization as _;

use crate::{Settings, email::Email, random};

/// Shortest password in characters. OWASP ASVS 5.0 (6.2.1) demands 8 and recommends 15; between them until a second
/// factor can be had. What it is made of is left to the person (6.2.5).
pub(crate) const CHARS_MIN: usize = 12;
/// Longest password in characters: twice the 64 that ASVS 5.0 (6.2.9) wants allowed, and little to hash.
pub(crate) const CHARS_MAX: usize = 128;
/// No character is longer than this in UTF-8.
const CHAR_BYTES_MAX: usize = 4;

/// Callers that wait for each hash at work. Thirty wait about 0.7 s at the default parameters; who comes after them is
/// told to come back.
const WAITING_PER_HASH: usize = 30;
/// New passwords take at most one place in so many. Anybody may register as often as they like, while guesses are
/// throttled before they come here: so a flood of registrations leaves room for people who sign in.
const PLACES_PER_NEW_PASSWORD: usize = 2;

/// A password in the one form that is hashed, NFKC, so that two keyboards make one of the same letters (NIST SP
/// 800-63B-4, section 3.1.1.2).
#[derive(Clone, Debug)]
pub(crate) struct Password(Secret);

impl Password {
    /// A password that somebody wants to have; `email` is `None` where no address could be read.
    ///
    /// # Errors
    /// The rule it breaks, at `/password`. The password is not part of it.
    pub(crate) fn choose(text: &str, email: Option<&Email>) -> Result<Self, Violation> {
        let violation =
            |code: &str, message: String| Violation { pointer: "/password".into(), code: code.into(), message };
        let too_long = || violation("max_length", format!("must be at most {CHARS_MAX} characters"));
        let password = Self::offer(text).ok_or_else(too_long)?;
        if password.0.expose().chars().count() < CHARS_MIN {
            return Err(violation("min_length", format!("must be at least {CHARS_MIN} characters")));
        }
        if email.is_some_and(|email| password.0.expose().to_lowercase() == email.as_str()) {
            return Err(violation("equals_email", "must not be the e-mail address".into()));
        }
        Ok(password)
    }

    /// A password that somebody claims to know; `None` for one that nobody can have, because it is too long.
    pub(crate) fn offer(text: &str) -> Option<Self> {
        if text.len() > CHARS_MAX * CHAR_BYTES_MAX {
            return None;
        }
        let normal: String = text.nfkc().collect();
        (normal.chars().count() <= CHARS_MAX).then(|| Self(Secret::new(normal)))
    }
}

/// What a check of a password came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verified {
    /// It is another, or there was no hash to check it against.
    No,
    Yes,
    /// It is right, and its hash was made with parameters that are no longer ours.
    YesButStale,
}

/// Hashes and checks passwords. Cheap to clone; clones share the bounds.
#[derive(Debug, Clone)]
pub(crate) struct Hasher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    argon2: Argon2<'static>,
    threads: Threads,
    /// A permit for each hash at work or waited for.
    places: Arc<Semaphore>,
    /// A permit for each of them that is a new password's.
    new_passwords: Arc<Semaphore>,
    /// The hash of no password, checked where there is no account so that its absence takes as long.
    nobody: String,
}

impl Hasher {
    /// # Errors
    /// `internal` for parameters that Argon2 refuses; [`Settings::faults`] allows none of those.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Fail> {
        let params = Params::new(
            settings.password_memory_kib,
            settings.password_passes,
            settings.password_lanes,
            Some(Params::DEFAULT_OUTPUT_LEN),
        )
        .map_err(Fail::internal)?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let hashes_max = settings.password_hashes_max.map_or_else(cores, |most| most as usize);
        let places = hashes_max * (1 + WAITING_PER_HASH);
        let nobody = argon2.hash_password(&random::bytes::<32>()?).map_err(Fail::internal)?.to_string();
        Ok(Self(Arc::new(Inner {
            argon2,
            threads: Threads::start(hashes_max).map_err(Fail::internal)?,
            places: Arc::new(Semaphore::new(places)),
            new_passwords: Arc::new(Semaphore::new((places / PLACES_PER_NEW_PASSWORD).max(1))),
            nobody,
        })))
    }

    /// The PHC string to store for a password.
    ///
    /// # Errors
    /// `auth.busy` (503) when too many wait already.
    pub(crate) async fn hash(&self, password: &Password) -> Result<String, Fail> {
        let password = password.clone();
        self.run_new(move |inner| {
            let hash = inner.argon2.hash_password(password.0.expose().as_bytes()).map_err(Fail::internal)?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Checks a password against a stored hash. Without one it takes as long and answers [`Verified::No`].
    ///
    /// # Errors
    /// As [`hash`](Self::hash); `internal` for a stored hash that does not parse.
    pub(crate) async fn verify(&self, password: &Password, stored: Option<&str>) -> Result<Verified, Fail> {
        let (password, stored) = (password.clone(), stored.map(str::to_owned));
        self.run(move |inner| {
            let hash = PasswordHash::new(stored.as_deref().unwrap_or(&inner.nobody)).map_err(Fail::internal)?;
            let is_right = inner.argon2.verify_password(password.0.expose().as_bytes(), &hash).is_ok();
            Ok(match is_right && stored.is_some() {
                false => Verified::No,
                true if inner.is_current(&hash) => Verified::Yes,
                true => Verified::YesButStale,
            })
        })
        .await
    }

    /// Makes a digest of something that holds a password as costly to guess as the password's own hash. The same
    /// `digest` and `salt` give the same answer.
    ///
    /// # Errors
    /// As [`hash`](Self::hash).
    pub(crate) async fn stretch(&self, digest: [u8; 32], salt: [u8; 32]) -> Result<[u8; 32], Fail> {
        self.run_new(move |inner| {
            let mut stretched = [0; 32];
            inner.argon2.hash_password_into(&digest, &salt, &mut stretched).map_err(Fail::internal)?;
            Ok(stretched)
        })
        .await
    }

    /// As [`run`](Self::run), in one of the places for new passwords.
    async fn run_new<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, Fail> {
        let _place = Arc::clone(&self.0.new_passwords).try_acquire_owned().map_err(|_| busy())?;
        self.run(work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, Fail> + Send + 'static,
    ) -> Result<T, Fail> {
        let place = Arc::clone(&self.0.places).try_acquire_owned().map_err(|_| busy())?;
        let inner = Arc::clone(&self.0);
        let (answer, done) = oneshot::channel();
        self.0.threads.take(Box::new(move || {
            // Whoever went away while it waited is not worth a core. Once begun it is held to the end: the core and the
            // memory are spent all the same.
            if !answer.is_closed() {
                let _gone = answer.send(work(&inner));
            }
            drop(place);
        }))?;
        done.await.map_err(Fail::internal)?
    }
}

fn busy() -> Fail {
    Fail::unavailable("auth.busy", "Too many sign-ins are waiting already.").retry_after(Duration::from_secs(1))
}

type Work = Box<dyn FnOnce() + Send>;

/// Threads that do nothing but hash, as many as hashes may be at work. An allocator keeps what was freed for the thread,
/// or group of threads, that had it: on a pool of many threads a flood of hashes would leave every group with the memory
/// of several. They end when this is dropped and what was taken is done.
#[derive(Debug)]
struct Threads(mpsc::Sender<Work>);

impl Threads {
    fn start(count: usize) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel::<Work>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name("password-hash".to_owned()).spawn(move || {
                // The lock is let go of with the statement: it is held while waiting and never while hashing.
                while let Ok(work) = { receiver.lock().unwrap_or_else(PoisonError::into_inner).recv() } {
                    // A panic is told to who waits by the end of their channel, and must not cost us the thread.
                    let _panicked = catch_unwind(AssertUnwindSafe(work));
                }
            })?;
        }
        Ok(Self(sender))
    }

    fn take(&self, work: Work) -> Result<(), Fail> {
        self.0.send(work).map_err(|_| Fail::internal("the threads that hash passwords have ended"))
    }
}

impl Inner {
    fn is_current(&self, hash: &PasswordHash) -> bool {
        hash.algorithm == Algorithm::Argon2id.ident()
            && hash.version == Some(Version::V0x13.into())
            && Params::try_from(hash).is_ok_and(|params| {
                let ours = self.argon2.params();
                (params.m_cost(), params.t_cost(), params.p_cost()) == (ours.m_cost(), ours.t_cost(), ours.p_cost())
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hasher(passes: u32) -> Hasher {
        let cheap = Settings { password_memory_kib: 8192, password_passes: passes, ..Settings::default() };
        Hasher::new(&cheap).expect("good parameters")
    }

    fn offer(text: &str) -> Password {
        Password::offer(text).expect("short enough")
    }

    #[test]
    fn a_password_is_judged_by_its_length_in_characters_and_by_nothing_it_is_made_of() {
        let email = Email::parse("ada.lovelace@example.com").expect("an address");
        let code = |text: &str| Password::choose(text, Some(&email)).err().map(|violation| violation.code);
        assert_eq!(code("aaaaaaaaaaaa"), None);
        assert_eq!(code("aaaaaaaaaaa").as_deref(), Some("min_length"));
        assert_eq!(code("ääääääääääää"), None, "characters count, not bytes");
        assert_eq!(code("ääääääääääa").as_deref(), Some("min_length"));
        assert_eq!(code(&"x".repeat(128)), None);
        assert_eq!(code(&"x".repeat(129)).as_deref(), Some("max_length"));
        assert_eq!(code(&"x".repeat(100_000)).as_deref(), Some("max_length"));
        assert_eq!(code("Ada.Lovelace@example.com").as_deref(), Some("equals_email"));
    }

    #[tokio::test]
    async fn the_same_letters_from_two_keyboards_are_one_password() {
        let hasher = hasher(1);
        let hash = hasher.hash(&offer("cafe\u{301} au lait")).await.expect("a hash");
        assert_eq!(hasher.verify(&offer("caf\u{e9} au lait"), Some(&hash)).await.expect("checked"), Verified::Yes);
        assert_eq!(hasher.verify(&offer("cafe au lait"), Some(&hash)).await.expect("checked"), Verified::No);
    }

    #[tokio::test]
    async fn a_hash_of_former_parameters_verifies_and_is_called_stale() {
        let former = hasher(1).hash(&offer("correct horse")).await.expect("a hash");
        let verified = hasher(2).verify(&offer("correct horse"), Some(&former)).await.expect("checked");
        assert_eq!(verified, Verified::YesButStale);
    }

    #[tokio::test]
    async fn without_an_account_no_password_is_right() {
        assert_eq!(hasher(1).verify(&offer(""), None).await.expect("checked"), Verified::No);
    }

    #[tokio::test]
    async fn who_comes_after_a_full_queue_is_told_to_come_back() {
        let hasher = hasher(1);
        let places = hasher.0.places.available_permits();
        let _full = hasher.0.places.try_acquire_many(u32::try_from(places).expect("few")).expect("all are free");
        let refused = hasher.hash(&offer("correct horse")).await.expect_err("the queue is full");
        assert_eq!((refused.code(), refused.kind()), ("auth.busy", kit::Kind::Unavailable));
        assert!(refused.retry_after_hint().is_some());
        // Without an account there is work too, behind the same queue.
        assert!(hasher.verify(&offer("correct horse"), None).await.is_err());
    }

    #[tokio::test]
    async fn a_flood_of_new_passwords_leaves_room_for_those_who_sign_in() {
        let hasher = hasher(1);
        let hash = hasher.hash(&offer("correct horse")).await.expect("a hash");
        let new = hasher.0.new_passwords.available_permits();
        assert!(new < hasher.0.places.available_permits());
        let _flood = hasher.0.new_passwords.try_acquire_many(u32::try_from(new).expect("few")).expect("all are free");
        assert_eq!(hasher.hash(&offer("battery staple")).await.expect_err("no room").code(), "auth.busy");
        assert_eq!(hasher.verify(&offer("correct horse"), Some(&hash)).await.expect("room"), Verified::Yes);
    }

    #[tokio::test]
    async fn a_panic_while_hashing_costs_one_caller_its_answer_and_no_thread() {
        let one = Settings { password_hashes_max: Some(1), password_memory_kib: 8192, ..Settings::default() };
        let hasher = Hasher::new(&one).expect("good parameters");
        let panicked = hasher.run(|_| -> Result<(), Fail> { panic!("on purpose") }).await;
        assert_eq!(panicked.expect_err("it panicked").kind(), kit::Kind::Internal);
        assert!(hasher.hash(&offer("correct horse")).await.is_ok());
    }
}
