//! Authorities of the test's own, certificates of theirs in files, and callers that show one, another's, or none.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::wait::SOON;

/// What a caller of HTTP/2 says first (RFC 9113, section 3.4), with settings that change nothing.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

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

    /// Writes a new certificate for this machine into a new `folder`, its key, and this authority.
    pub(crate) fn issue(&self, folder: &Path) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("names");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::create_dir(folder).expect("a folder");
        fs::write(folder.join("key.pem"), key.serialize_pem()).expect("a file");
        fs::write(folder.join("ca.pem"), self.certificate.pem()).expect("a file");
        fs::write(folder.join("cert.pem"), certificate.pem()).expect("a file");
    }

    /// A caller that trusts this authority, and shows the certificate in a folder, or none.
    pub(crate) fn caller(&self, shows: Option<&Path>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.der().clone()).expect("an authority");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some(folder) => {
                let certificate = CertificateDer::from_pem_file(folder.join("cert.pem")).expect("a certificate");
                let key = PrivateKeyDer::from_pem_file(folder.join("key.pem")).expect("a key");
                builder.with_client_auth_cert(vec![certificate], key).expect("they fit together")
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// Whether the port speaks HTTP/2 with such a caller. In TLS 1.3 a caller hears of its refusal with the first answer.
pub(crate) async fn is_answered(address: &str, caller: ClientConfig) -> bool {
    let address = address.to_owned();
    let asked = tokio::task::spawn_blocking(move || {
        let name = "127.0.0.1".try_into().expect("an address");
        let mut connection = ClientConnection::new(Arc::new(caller), name).expect("a connection");
        let mut socket = TcpStream::connect(address).expect("the port is there");
        socket.set_read_timeout(Some(SOON)).expect("a bound");
        let mut stream = rustls::Stream::new(&mut connection, &mut socket);
        let mut answer = [0; 9];
        stream.write_all(PREFACE).and_then(|()| stream.read_exact(&mut answer)).map(|()| answer)
    });
    match asked.await.expect("it runs to its end") {
        // The frame's kind: settings, with which every HTTP/2 connection begins.
        Ok(answer) => answer[3] == 4,
        Err(error) => {
            let is_refusal = error.to_string().contains("received fatal alert");
            assert!(is_refusal, "the connection broke for another reason: {error}");
            false
        }
    }
}
