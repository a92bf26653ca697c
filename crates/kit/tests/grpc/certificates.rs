//! A CA of the test's own, and certificates of it in files.

use std::{fs, path::Path, sync::Arc};

use kit::{
    tasks::Tasks,
    tls::{Files, Tls},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::CertificateDer};

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// Writes a new certificate for this machine into `folder`, its key, and this CA.
    pub(crate) fn issue(&self, folder: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(folder.join("key.pem"), key.serialize_pem()).expect("a file");
        fs::write(folder.join("ca.pem"), self.certificate.pem()).expect("a file");
        fs::write(folder.join("cert.pem"), certificate.pem()).expect("a file");
    }

    /// Both ends' certificates in a folder of their own.
    pub(crate) fn tls(&self) -> (tempfile::TempDir, Tls) {
        let folder = tempfile::tempdir().expect("a folder");
        self.issue(folder.path());
        let tls = open(folder.path(), true).expect("good files");
        (folder, tls)
    }

    /// A caller that trusts this CA and shows no certificate.
    pub(crate) fn trusting(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("a CA");
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}

pub(crate) fn open(folder: &Path, with_ca: bool) -> Result<Tls, kit::Fail> {
    let files = Files {
        cert: folder.join("cert.pem"),
        key: folder.join("key.pem"),
        ca: with_ca.then(|| folder.join("ca.pem")),
    };
    Tls::open(files, &Tasks::new())
}

/// The certificate in a folder, as it is shown.
pub(crate) fn of(folder: &Path) -> CertificateDer<'static> {
    use rustls::pki_types::pem::PemObject as _;
    CertificateDer::from_pem_file(folder.join("cert.pem")).expect("a certificate")
}
