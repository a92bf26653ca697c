//! The secrets and certificates, made at the first start and kept: for our user's eyes alone.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kit::private_server::PlaceError;
use kit::private_server::home::make_dir;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::shape::Instance;
use crate::{Error, write_secret};

/// Whom the first administrator signs in as: the default of the setting `admin_email`.
pub const ADMIN_EMAIL: &str = "admin@guildhall.localhost";

/// Where the secrets lie.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    keys: PathBuf,
    tls: PathBuf,
}

impl Keys {
    /// Makes what is missing.
    pub(crate) fn settle(data_dir: &Path, instances: &[Instance]) -> Result<Self, Error> {
        let keys = Self { keys: data_dir.join("keys"), tls: data_dir.join("tls") };
        make_dir(&keys.keys, 0o700)?;
        keys.ensure("service", service_key)?;
        keys.ensure("worker", service_key)?;
        // The same file as `guildhall up` keeps it in, so that the directory can be opened by either.
        keys.ensure("administrator", random_hex::<16>)?;
        let is_whole = keys.ca().is_file()
            && instances.iter().all(|i| keys.certificate(i).is_file() && keys.certificate_key(i).is_file());
        if !is_whole {
            keys.make_certificates(instances)?;
        }
        Ok(keys)
    }

    pub(crate) fn administrator_file(data_dir: &Path) -> PathBuf {
        data_dir.join("keys/administrator")
    }

    /// The file of a secret: `service`, `worker`, `administrator`, `amqp_url`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.keys.join(name)
    }

    pub(crate) fn keep_amqp_url(&self, url: &str) -> Result<(), PlaceError> {
        write_secret(&self.file("amqp_url"), url)
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.tls.join("ca.pem")
    }

    pub(crate) fn certificate(&self, instance: &Instance) -> PathBuf {
        self.tls.join(format!("{}.pem", instance.name()))
    }

    pub(crate) fn certificate_key(&self, instance: &Instance) -> PathBuf {
        self.tls.join(format!("{}.key", instance.name()))
    }

    fn ensure(&self, name: &str, make: impl FnOnce() -> Result<String, PlaceError>) -> Result<(), PlaceError> {
        let path = self.file(name);
        if path.is_file() { Ok(()) } else { write_secret(&path, &make()?) }
    }

    /// One authority, and of it a certificate for each process, good for both ends of a connection. The authority's own
    /// key is forgotten: what is missing later is made anew with all the rest.
    fn make_certificates(&self, instances: &[Instance]) -> Result<(), Error> {
        let unfinished = self.tls.with_extension("new");
        let _none_was_there = fs::remove_dir_all(&unfinished);
        make_dir(&unfinished, 0o700)?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Guildhall apart");
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        write_secret(&unfinished.join("ca.pem"), &authority.pem())?;

        for instance in instances {
            let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
            params.distinguished_name.push(DnType::CommonName, instance.name());
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &authority)?;
            write_secret(&unfinished.join(format!("{}.pem", instance.name())), &certificate.pem())?;
            write_secret(&unfinished.join(format!("{}.key", instance.name())), &key.serialize_pem())?;
        }
        let _older_ones = fs::remove_dir_all(&self.tls);
        fs::rename(&unfinished, &self.tls).map_err(PlaceError::io(format!("rename {}", unfinished.display())))?;
        Ok(())
    }
}

/// `gld_<id>_<secret>`, as `auth` takes it: an id of 128 and a secret of 256 random bits.
fn service_key() -> Result<String, PlaceError> {
    Ok(format!("gld_{}_{}", random_hex::<16>()?, random_hex::<32>()?))
}

fn random_hex<const BYTES: usize>() -> Result<String, PlaceError> {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).map_err(io::Error::other).map_err(PlaceError::io("draw a random number"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::shape;

    #[test]
    fn secrets_are_made_once_for_our_eyes_alone_and_certificates_again_when_one_is_missing() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (instances, _held) = shape::instances().expect("free ports");
        let keys = Keys::settle(dir.path(), &instances).expect("keys");
        let read = |path: PathBuf| fs::read_to_string(path).expect("a file");
        let (service, ca) = (read(keys.file("service")), read(keys.ca()));
        for path in [keys.file("service"), keys.file("administrator"), keys.certificate_key(&instances[0])] {
            let mode = fs::metadata(&path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }

        let again = Keys::settle(dir.path(), &instances).expect("keys");
        assert_eq!((read(again.file("service")), read(again.ca())), (service.clone(), ca.clone()));

        fs::remove_file(again.certificate(&instances[0])).expect("it was there");
        let anew = Keys::settle(dir.path(), &instances).expect("keys");
        assert_eq!(read(anew.file("service")), service);
        assert_ne!(read(anew.ca()), ca, "its key was forgotten");
    }
}
