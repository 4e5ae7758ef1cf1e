//! The binary: arguments, logs, exit code.

use std::process::ExitCode;

use tollgate::app::{self, Named, Options};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,rumqttd=warn"));
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).init();
    let named = std::env::args().skip_while(|argument| argument != "--config").nth(1);
    let options = Options {
        named: if named.is_some() { Named::Yes } else { Named::No },
        config: named.unwrap_or_else(|| "config/gateway.toml".into()).into(),
    };
    match app::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
