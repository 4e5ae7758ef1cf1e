//! The names that a server's certificate is for (RFC 6125).

use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The DNS names of a certificate, in lower case; common names and addresses do not count. Empty where it cannot be read.
pub fn certificate_dns_names(der: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Vec::new() };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|names| &names.value.general_names);
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

/// Whether a certificate with these names is one for `name`, which may be a wildcard itself. A wildcard stands for one
/// label and is the whole leftmost one (RFC 6125 §6.4.3).
pub fn names_cover(names: &[String], name: &str) -> bool {
    let wildcard = wildcard_of(name);
    names.iter().any(|held| held == name || wildcard.as_deref() == Some(held))
}

/// The wildcard that covers a name: `*.example` for `a.example`.
pub fn wildcard_of(name: &str) -> Option<String> {
    let (first, rest) = name.split_once('.')?;
    (first != "*").then(|| format!("*.{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_covered_by_itself_and_by_a_wildcard_of_its_own_level() {
        let names = ["mqtt.example".to_owned(), "*.line7.example".to_owned()];
        for (name, covered) in [
            ("mqtt.example", true),
            ("a.line7.example", true),
            ("*.line7.example", true),
            ("line7.example", false),
            ("a.b.line7.example", false),
            ("*.example", false),
            ("example", false),
            ("", false),
        ] {
            assert_eq!(names_cover(&names, name), covered, "{name}");
        }
    }

    #[test]
    fn names_are_read_from_a_certificate_in_lower_case_and_nothing_else_is() {
        let names = ["A.example", "*.B.example", "127.0.0.1"].map(str::to_owned);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
        assert_eq!(certificate_dns_names(certificate.der()), ["a.example", "*.b.example"]);
        assert_eq!(certificate_dns_names(b"no certificate"), [""; 0]);
    }
}
