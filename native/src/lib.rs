//! The optional native part of dialkey. It holds no state of a connection and makes no decision: each
//! function does in one call what `dialkey` otherwise does by column in Python, and the tests compare
//! the two on random and on hostile input.
//!
//! - `PacketKey.seal_run`, `PacketKey.open_run`: a run of full packets of one stream (`runs.rs`);
//! - `PacketKey.masks`: header-protection masks (`runs.rs`);
//! - `group_cvs`, `parent_cvs`: BLAKE3 chaining values (`tree.rs`).

use pyo3::prelude::*;

mod runs;
mod tree;

/// Raised by one whenever a signature or a meaning changes; `dialkey.native` takes one value only.
const API: u32 = 1;

#[pymodule]
fn dialkey_native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("API", API)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<runs::PacketKey>()?;
    module.add_function(wrap_pyfunction!(tree::group_cvs, module)?)?;
    module.add_function(wrap_pyfunction!(tree::parent_cvs, module)?)?;
    Ok(())
}
