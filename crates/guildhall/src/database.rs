//! The database of this process: the one that `database_url` names, or the private server of the data directory; and
//! the schemas in it, each migrated as its own role.

use kit::{
    Fail, Secret,
    db::Schema,
    private_postgres::{Options, PrivatePostgres},
};

use sqlx::migrate::Migrator;

use crate::{
    roles::{Role, Roles},
    settings::Settings,
};

/// A database that answers.
#[derive(Debug)]
pub(crate) struct Database {
    private: Option<PrivatePostgres>,
    url: Secret,
}

impl Database {
    /// Starts the private server when no URL names another. The other is not asked here: migrating does.
    ///
    /// # Errors
    /// `up.postgres` with a sentence that says the way out.
    pub(crate) async fn open(settings: &Settings) -> Result<Self, Fail> {
        if let Some(url) = &settings.process.database_url {
            return Ok(Self { private: None, url: url.clone() });
        }
        let options = private_options(settings);
        let private = PrivatePostgres::start(options).await;
        let private = private.map_err(|error| Fail::unavailable("up.postgres", format!("{error}.")))?;
        let url = Secret::new(private.url());
        Ok(Self { private: Some(private), url })
    }

    pub(crate) fn url(&self) -> &str {
        self.url.expose()
    }

    /// Brings every schema to this version, and tells how many migrations that took. What is there already costs a look.
    ///
    /// # Errors
    /// As [`kit::db::migrate_all`].
    pub(crate) async fn migrate(&self) -> Result<usize, Fail> {
        let lacked = kit::db::migrate_all(self.url(), &schemas(Role::ALL)).await?;
        for (schema, migrations) in lacked.iter().filter(|(_, migrations)| *migrations > 0) {
            tracing::info!(schema = schema.name(), migrations, "migrated");
        }
        Ok(lacked.iter().map(|(_, migrations)| migrations).sum())
    }

    /// Refuses a database in which a schema of `roles` is older than this version: services apart do not migrate, since
    /// several would at once, and with more rights than they need.
    ///
    /// # Errors
    /// `config.schema`, `config.database_rights`, as [`kit::db::check`].
    pub(crate) async fn check(&self, roles: &Roles) -> Result<(), Fail> {
        kit::db::check(self.url(), &schemas(roles.services())).await
    }

    /// Resolves, with the reason, only when the private server is given up.
    pub(crate) async fn died(&self) -> String {
        match &self.private {
            Some(private) => private.died().await,
            None => std::future::pending().await,
        }
    }

    /// Stops the private server; another is left as it is.
    pub(crate) async fn close(self) {
        if let Some(private) = self.private {
            private.stop().await;
        }
    }
}

/// The places of these roles in the database.
pub(crate) fn schemas(roles: impl IntoIterator<Item = Role>) -> Vec<(Schema, &'static Migrator)> {
    roles.into_iter().filter_map(Role::schema).collect()
}

/// How the private server of these settings is run.
pub(crate) fn private_options(settings: &Settings) -> Options {
    Options { data_dir: settings.data_dir.clone(), bin_dir: settings.process.pg_bin.clone(), durable: true }
}
