//! What a login needs to act as the services' roles: that each role is there, that the login may take it on, and that its
//! schema is there. What is missing is told as the statements that an administrator runs, for all schemas at once.

use sqlx::{AssertSqlSafe, Executor as _, PgConnection, Row as _};

use super::{Place, quoted};
use crate::Fail;

/// What a login lacks in one database, as far as the services asked for need it.
#[derive(Debug)]
pub(super) struct Rights {
    database: String,
    login: String,
    places: Vec<Found>,
}

/// What there is of one service's place.
#[derive(Debug)]
struct Found {
    place: Place,
    has_role: bool,
    may_take_role: bool,
    has_schema: bool,
}

impl Rights {
    pub(super) async fn find(connection: &mut PgConnection, places: &[Place]) -> Result<Self, sqlx::Error> {
        let sql = "select current_database()::text as database, current_user::text as login";
        let row = connection.fetch_one(sql).await?;
        let (database, login) = (row.try_get("database")?, row.try_get("login")?);
        let mut found = Vec::with_capacity(places.len());
        for place in places {
            // From version 16 on, membership alone does not let a login take a role on.
            let sql = "select exists (select from pg_catalog.pg_roles where rolname = $1) as has_role,
                              exists (select from pg_catalog.pg_namespace where nspname = $2) as has_schema,
                              coalesce((select pg_has_role(current_user, oid, case
                                          when current_setting('server_version_num')::int >= 160000 then 'set'
                                          else 'member'
                                        end)
                                        from pg_catalog.pg_roles
                                        where rolname = $1),
                                       (select rolsuper from pg_catalog.pg_roles where rolname = current_user),
                                       false) as may_take_role";
            let row = sqlx::query(sql).bind(&place.role).bind(place.schema.name()).fetch_one(&mut *connection).await?;
            found.push(Found {
                place: place.clone(),
                has_role: row.try_get("has_role")?,
                may_take_role: row.try_get("may_take_role")?,
                has_schema: row.try_get("has_schema")?,
            });
        }
        Ok(Self { database, login, places: found })
    }

    /// Whether roles or schemas are missing, and not only the right to use those that are there.
    pub(super) fn lack_a_place(&self) -> bool {
        self.places.iter().any(|found| !found.has_role || !found.has_schema)
    }

    /// The statements that make good what is missing; none where nothing is.
    pub(super) fn statements(&self) -> Vec<String> {
        let role = |found: &Found| quoted(&found.place.role);
        let roles = self.places.iter().filter(|found| !found.has_role);
        let roles = roles.map(|found| format!("create role {} nologin", role(found)));
        // Before the schemas: who makes a schema for a role must be able to take that role on, too.
        let granted: Vec<_> = self.places.iter().filter(|found| !found.may_take_role).map(role).collect();
        let grant = (!granted.is_empty()).then(|| format!("grant {} to {}", granted.join(", "), quoted(&self.login)));
        let schemas = self.places.iter().filter(|found| !found.has_schema);
        let schemas =
            schemas.map(|found| format!("create schema {} authorization {}", found.place.schema.name(), role(found)));
        roles.chain(grant).chain(schemas).collect()
    }

    /// Makes good what is missing, and nothing else, in the transaction that is open.
    pub(super) async fn make_good(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        for statement in self.statements() {
            connection.execute(AssertSqlSafe(statement)).await?;
        }
        Ok(())
    }

    /// `config.database_rights`, with all that an administrator has to run.
    pub(super) fn lacking(&self) -> Fail {
        Fail::forbidden(
            "config.database_rights",
            format!(
                "The database user {} lacks rights. Let an administrator run in the database {}: {};",
                quoted(&self.login),
                quoted(&self.database),
                self.statements().join("; ")
            ),
        )
    }
}
