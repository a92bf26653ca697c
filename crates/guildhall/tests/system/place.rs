//! Where a scenario happens: in a house of its own, all roles in one process, or in the production shape, each role in
//! processes of its own behind nginx. That one takes half a minute to open, so the tests of a run share it, each with
//! people of its own.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use tokio::sync::OnceCell;

use crate::{house::House, person::Person, variable};

/// Makes two tests of each scenario, one a shape: `scenario::in_one_process` and `scenario::with_the_roles_apart`.
macro_rules! in_both_shapes {
    ($($scenario:ident)*) => {$(
        mod $scenario {
            #[tokio::test(flavor = "multi_thread")]
            async fn in_one_process() {
                super::$scenario($crate::place::Place::in_one_process().await).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn with_the_roles_apart() {
                super::$scenario($crate::place::Place::with_the_roles_apart().await).await;
            }
        }
    )*};
}
pub(crate) use in_both_shapes;

static APART: OnceCell<Apart> = OnceCell::const_new();
static NEWCOMERS: AtomicUsize = AtomicUsize::new(1);

/// A Guildhall that is open.
pub(crate) struct Place {
    shape: Shape,
    dir: tempfile::TempDir,
}

enum Shape {
    InOneProcess(Box<House>),
    Apart(&'static Apart),
}

/// What there is to know of the one that is shared.
struct Apart {
    http: String,
    database_url: String,
    administrator_file: PathBuf,
}

impl Place {
    pub(crate) async fn in_one_process() -> Self {
        Self::new(Shape::InOneProcess(Box::new(House::open().await)))
    }

    pub(crate) async fn with_the_roles_apart() -> Self {
        crate::house::install_tls();
        Self::new(Shape::Apart(APART.get_or_init(Apart::open).await))
    }

    fn new(shape: Shape) -> Self {
        Self { shape, dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// The public door.
    pub(crate) fn http(&self) -> &str {
        match &self.shape {
            Shape::InOneProcess(house) => &house.ready().http,
            Shape::Apart(apart) => &apart.http,
        }
    }

    /// Leads to the database as its superuser.
    pub(crate) fn database_url(&self) -> String {
        match &self.shape {
            Shape::InOneProcess(house) => house.database_url(),
            Shape::Apart(apart) => apart.database_url.clone(),
        }
    }

    /// For what the test itself writes.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The house, where one process has it all.
    pub(crate) fn house(&self) -> Option<&House> {
        match &self.shape {
            Shape::InOneProcess(house) => Some(house),
            Shape::Apart(_) => None,
        }
    }

    /// Somebody new, signed in, whom no other test knows.
    pub(crate) async fn newcomer(&self, name: &str) -> Person {
        let number = NEWCOMERS.fetch_add(1, Ordering::Relaxed);
        Person::register(self.http(), &format!("{name}-{number}")).await
    }

    pub(crate) async fn administrator(&self) -> Person {
        match &self.shape {
            Shape::InOneProcess(house) => house.administrator().await,
            Shape::Apart(apart) => {
                let password = std::fs::read_to_string(&apart.administrator_file).expect("the password is kept");
                Person::login(&apart.http, apart::ADMIN_EMAIL, password.trim()).await
            }
        }
    }

    /// A house must close well; what is shared stays open for the others.
    pub(crate) async fn close(self) {
        match self.shape {
            Shape::InOneProcess(house) => house.close().await,
            Shape::Apart(_) => {}
        }
    }
}

impl Apart {
    /// Opens it on a thread with a runtime of its own: a test's runtime ends with the test. Its processes end with ours.
    async fn open() -> Self {
        let (opened, open) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("apart".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async {
                let apart = apart::Apart::open(options(), |sentence: &dyn std::fmt::Display| println!("{sentence}"));
                let apart = apart.await.unwrap_or_else(|error| panic!("it does not open: {error}"));
                let told = Self {
                    http: apart.http().to_owned(),
                    database_url: apart.database_url(),
                    administrator_file: apart.administrator_file(),
                };
                let _the_first_test_has_ended = opened.send(told);
                std::future::pending::<()>().await;
                drop(apart);
            });
        });
        thread.expect("a thread");
        open.await.expect("it opens")
    }
}

fn options() -> apart::Options {
    let mut env = vec![
        ("GUILDHALL_LOG_FILTER".to_owned(), "info,gateway=warn".to_owned()),
        // Strong enough to be real, light enough for a test that signs many people in.
        ("GUILDHALL_PASSWORD_MEMORY_KIB".to_owned(), "8192".to_owned()),
    ];
    let ours = ["TMPDIR", "GUILDHALL_DEV_RUN", "LLVM_PROFILE_FILE"];
    env.extend(ours.into_iter().filter_map(|name| Some((name.to_owned(), variable(name)?))));
    apart::Options {
        data_dir: kit::testing::directory(),
        guildhall: env!("CARGO_BIN_EXE_guildhall").into(),
        http_listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
        // Three workers of one slot each, beside everything else on the machine.
        worker_slots: Some(1),
        pg_bin: variable("GUILDHALL_PG_BIN").map(PathBuf::from),
        env,
    }
}
