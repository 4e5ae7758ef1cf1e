//! The program: logs to standard error, and what the arguments say.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use tollgate::{
    app::{self, Named, Options},
    cli::{self, GatewayFile},
};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let is_terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(is_terminal).init();
    cli::main(|file| {
        let named = match file {
            GatewayFile::Named(_) => Named::Yes,
            GatewayFile::Default(_) => Named::No,
        };
        app::run(&Options { config: file.path().into(), named })
    })
}

/// Unless `RUST_LOG` says otherwise. The embedded hub calls every connection that the pool ends an error: whether it
/// lives is its supervisor's to say. What rumqttc would warn of, `pub` and `sub` show.
const LOG: &str = "info,rumqttd=off,rumqttc=error";
