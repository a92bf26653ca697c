//! What a process with certain roles needs to be told, and what about the ways between processes contradicts itself.

use kit::grpc::Peer;

use super::Settings;
use crate::roles::{Role, Roles};

impl Settings {
    /// The faults that only the roles show, a sentence each.
    pub(super) fn lacks(&self, roles: &Roles) -> Vec<String> {
        let mut faults = self.ways();
        let services = roles.services().count();
        if services > 1 && self.process.grpc_listen.is_some_and(|address| address.port() != 0) {
            faults.push(format!("grpc_listen names one port, and this process has {services} services: give port 0"));
        }
        if !roles.is_up {
            faults.extend(self.apart(roles));
        }
        faults
    }

    /// What is wrong with certificates, URLs and keys, in whatever roles.
    fn ways(&self) -> Vec<String> {
        let process = &self.process;
        let mut faults = Vec::new();
        if process.tls_cert_file.is_some() != process.tls_key_file.is_some() {
            faults.push("tls_cert_file and tls_key_file are of no use one without the other".to_owned());
        }
        if process.tls_ca_file.is_some() && process.tls_cert_file.is_none() {
            faults.push("tls_ca_file makes everybody show a certificate: tls_cert_file must be said, too".to_owned());
        }
        let has_tls = process.tls_cert_file.is_some();
        for role in Role::ALL {
            let wrong = self.urls_of(role).iter().filter_map(|url| Peer::url_fault(url, has_tls));
            faults.extend(wrong.map(|clause| format!("{}_url {clause}", role.name())));
        }
        for (name, key) in [("service_key", &process.service_key), ("worker_key", &process.worker_key)] {
            if key.as_ref().is_some_and(|key| !auth::is_service_key(key)) {
                faults.push(format!("{name} must be `gld_`, 32 hexadecimal digits, `_`, and 64 more"));
            }
        }
        if process.service_key.is_some() && process.service_key == process.worker_key {
            faults.push("worker_key must not be the same as service_key: it is worth less".to_owned());
        }
        if process
            .amqp_url
            .as_ref()
            .is_some_and(|url| !["amqp://", "amqps://"].iter().any(|s| url.expose().starts_with(s)))
        {
            faults.push("amqp_url must begin with amqp:// or amqps://".to_owned());
        }
        faults
    }

    /// What `serve` must be told, since nothing is made or found for it.
    fn apart(&self, roles: &Roles) -> Vec<String> {
        let process = &self.process;
        let has_worker_key = roles.has(Role::Auth) || roles.has(Role::Worker);
        let needs = [
            ("database_url", roles.services().next().is_some(), process.database_url.is_some()),
            ("amqp_url", roles.are_split(), process.amqp_url.is_some()),
            ("storage_url", roles.any(Role::needs_storage), process.storage_url.is_some()),
            ("public_url", roles.any(Role::needs_issuer), process.public_url.is_some()),
            ("service_key", roles.any(Role::shows_service_key), process.service_key.is_some()),
            ("worker_key", has_worker_key, process.worker_key.is_some()),
        ];
        let missing = needs.into_iter().filter(|(_, is_needed, is_said)| *is_needed && !is_said);
        let urls = roles.elsewhere().into_iter().filter(|role| self.urls_of(*role).is_empty());
        let names = missing.map(|(name, ..)| name.to_owned()).chain(urls.map(|role| format!("{}_url", role.name())));
        names.map(|name| format!("{name} must be said for `serve {}`", roles.names().join(" "))).collect()
    }
}

#[cfg(test)]
mod tests {
    use kit::config::Source;

    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let variables = variables.iter().map(|(name, value)| (format!("GUILDHALL_{name}"), (*value).to_owned()));
        let mut source = Source::read(std::path::Path::new("/does/not/exist"), false, variables);
        let settings = Settings {
            process: super::super::Process::take(&mut source),
            gateway: gateway::Settings::default(),
            auth: auth::Settings::default(),
            jobs: jobs::Settings::default(),
            admin: admin::Settings::default(),
            worker: worker::Settings::default(),
            data_dir: "/".into(),
        };
        assert_eq!(source.into_faults(), Vec::<String>::new());
        settings
    }

    fn named(faults: &[String]) -> Vec<&str> {
        faults.iter().filter_map(|fault| fault.split(' ').next()).collect()
    }

    #[test]
    fn up_needs_nothing_and_each_role_apart_is_told_all_that_it_lacks() {
        let nothing = settings(&[]);
        assert_eq!(nothing.lacks(&Roles::up()), Vec::<String>::new());
        let lacks = |roles: &[Role]| nothing.lacks(&Roles::serve(roles));
        assert_eq!(
            named(&lacks(&[Role::Auth])),
            ["database_url", "amqp_url", "public_url", "service_key", "worker_key", "admin_url"]
        );
        assert_eq!(
            named(&lacks(&[Role::Jobs])),
            ["database_url", "amqp_url", "storage_url", "public_url", "service_key", "auth_url", "admin_url"]
        );
        assert_eq!(
            named(&lacks(&[Role::Gateway])),
            ["storage_url", "public_url", "service_key", "auth_url", "jobs_url", "admin_url"]
        );
        assert_eq!(named(&lacks(&[Role::Worker])), ["storage_url", "worker_key", "auth_url", "jobs_url", "admin_url"]);
        // All services in one process tell each other without a broker.
        assert!(!named(&lacks(&Role::ALL)).contains(&"amqp_url"));
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let key = auth::new_service_key().expect("randomness");
        let said: [(&str, &str); 6] = [
            ("TLS_CERT_FILE", "/cert"),
            ("AUTH_URL", "http://auth:7001"),
            ("SERVICE_KEY", key.expose()),
            ("WORKER_KEY", key.expose()),
            ("AMQP_URL", "http://queue"),
            ("GRPC_LISTEN", "127.0.0.1:7001"),
        ];
        let faults = settings(&said).lacks(&Roles::up());
        assert_eq!(
            named(&faults),
            ["tls_cert_file", "auth_url", "worker_key", "amqp_url", "grpc_listen"],
            "{faults:#?}"
        );
        let faults = settings(&[("TLS_CA_FILE", "/ca"), ("SERVICE_KEY", "hush")]).lacks(&Roles::up());
        assert_eq!(named(&faults), ["tls_ca_file", "service_key"]);
        assert!(!faults.concat().contains("hush"), "a secret is shown: {faults:?}");
    }
}
