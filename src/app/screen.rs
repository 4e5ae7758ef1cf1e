//! What a start prints: what listens where, and what to paste.

use std::{fmt::Write, path::Path};

use super::{Bound, Named, changes::Changes};
use crate::{
    config::{Config, FirstRun},
    listener::Transport,
    upstream::UpstreamKind,
};

/// To standard output, once.
pub(super) fn print(config: &Config, changes: &Changes, bound: &Bound, first_run: &FirstRun, named: Named) {
    let binary = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let binary = match (&binary, &here) {
        (Some(binary), Some(here)) => binary.strip_prefix(here).unwrap_or(binary).display().to_string(),
        _ => "tollgate".into(),
    };
    // Whoever names a configuration knows what is in it.
    let has_demo = named == Named::No && is_demo(&config.gateway.identities);
    print!("{}", screen(config, changes.counts(), bound, first_run, has_demo.then_some(binary.as_str())));
}

fn screen(
    config: &Config,
    (devices, revocations): (usize, usize),
    bound: &Bound,
    first_run: &FirstRun,
    demo: Option<&str>,
) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "\nTollgate {}   gateway {:?}\n", env!("CARGO_PKG_VERSION"), config.gateway.name);
    for (listener, address) in config.listeners.iter().zip(&bound.listeners) {
        let what = match (&listener.transport, &listener.web_socket) {
            (Transport::Tcp, None) => "MQTT",
            (Transport::Tls(_), None) => "MQTT over TLS",
            (Transport::Tcp, Some(_)) => "MQTT over ws",
            (Transport::Tls(_), Some(_)) => "MQTT over wss",
        };
        row(&mut text, what, &address.to_string());
    }
    for upstream in &config.upstreams {
        let place = match &upstream.kind {
            UpstreamKind::Embedded => "embedded: in this process, in memory".to_owned(),
            UpstreamKind::Nats(hub) => format!("{}, JetStream {:?}", hub.address(), hub.stream),
            UpstreamKind::Mqtt(hub) => hub.url(),
        };
        row(&mut text, &format!("hub {:?}", upstream.name), &place);
    }
    row(&mut text, "admin", &format!("http://{} (health, metrics, API)", bound.admin));
    if let Some(tokens) = bound.tokens {
        row(&mut text, "tokens", &format!("https://{tokens}/v1/tokens (token service)"));
    }
    row(&mut text, "devices", &format!("{devices} in {}", config.gateway.identities.display()));
    row(&mut text, "revoked", &format!("{revocations} in {}", config.gateway.revocations.display()));
    for made in &first_run.made {
        row(&mut text, "made", &made.display().to_string());
    }
    if let Some(binary) = demo {
        text.push_str(&paste(binary, config, bound));
    }
    text.push('\n');
    text
}

fn row(text: &mut String, what: &str, is: &str) {
    let _ = writeln!(text, "  {what:<14} {is}");
}

/// Commands for the demonstration identities.
fn paste(binary: &str, config: &Config, bound: &Bound) -> String {
    let port_of = |wanted: fn(&Transport) -> bool| {
        let mut all = config.listeners.iter().zip(&bound.listeners);
        all.find(|(listener, _)| listener.web_socket.is_none() && wanted(&listener.transport))
            .map(|(_, address)| address.port())
    };
    let plain = port_of(|t| matches!(t, Transport::Tcp));
    let tls = port_of(|t| matches!(t, Transport::Tls(_)));
    let host = &config.gate.hostname;
    let mut text = format!(
        "
Paste into a second terminal, in this directory.

  watch what arrives:
    {binary} sub --device dashboard --topic 'devices/+/messages/events/#'

and into a third:

  a device with a SAS token:
    {binary} pub --device demo-sas --message '{{\"temperature\": 21.5}}'
  a device with a JWT{}:
    {binary} pub --device demo-jwt --kind jwt{} --message hello
",
        if tls.is_some() { ", over TLS" } else { "" },
        if tls.is_some() { " --tls" } else { "" },
    );
    let mosquitto = match (tls, plain) {
        (Some(port), _) => Some(format!("-p {port} --cafile certs/ca.pem")),
        (None, Some(port)) => Some(format!("-p {port}")),
        (None, None) => None,
    };
    if let Some(connect) = mosquitto {
        let _ = write!(
            text,
            "  the same with mosquitto's client:
    mosquitto_pub -h {host} {connect} -i demo-sas -u demo-sas \\
      -P \"$({binary} token mint --device demo-sas)\" \\
      -t devices/demo-sas/messages/events/ -q 1 -m hello
"
        );
    }
    let _ = write!(
        text,
        "  revoke what watches, and see it cut off within milliseconds:
    {binary} revoke device dashboard --reason 'just looking'
  ask why anybody was refused or cut:
    {binary} refusals
"
    );
    text
}

/// Whether the demonstration identities are there to be used.
fn is_demo(identities: &Path) -> bool {
    std::fs::read_to_string(identities)
        .is_ok_and(|text| text.contains("\"demo-sas\"") && text.contains("\"dashboard\""))
}
