//! What the files say: shapes, and every mistake in them at once.

mod development;
mod document;
mod files;
mod first_run;
mod gateway;
mod keys;
mod listeners;
mod mistake;
mod private_file;
mod routes;
mod upstreams;

use std::path::Path;

pub use first_run::{FirstRun, admin_token_file, first_run, prepare_state};
pub use gateway::{Config, GatewayConfig, SpoolConfig};
pub use mistake::{Mistake, line_of};

/// A configuration that holds, and what an operator should know about it all the same.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but not well.
    pub warnings: Vec<Mistake>,
}

impl Config {
    /// Reads `gateway.toml` and looks at every file that it names, but for identities and revocations, which are
    /// read anew whenever they change.
    ///
    /// # Errors
    /// Every mistake, in the order of the file.
    pub fn load(path: &Path) -> Result<Loaded, Vec<Mistake>> {
        let mut parsed = gateway::read(path).map_err(|mistake| vec![mistake])?;
        let faults = files::check_files(path, &parsed.files, &mut parsed.config);
        parsed.mistakes.extend(faults);
        if parsed.mistakes.is_empty() {
            return Ok(Loaded { config: parsed.config, warnings: parsed.warnings });
        }
        parsed.mistakes.sort();
        parsed.mistakes.dedup();
        Err(parsed.mistakes)
    }
}
