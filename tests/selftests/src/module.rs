// SPDX-License-Identifier: GPL-2.0
//! Loading and unloading of kernel modules.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{ensure, Context, Result};
use nix::errno::Errno;
use nix::kmod::{delete_module, finit_module, DeleteModuleFlags, ModuleInitFlags};

const NAME: &CStr = c"vhost_iocm";

/// Whether a module is loaded.
pub fn is_loaded(name: &str) -> bool {
    // A module that is built into the kernel has a directory too, but no such file.
    Path::new("/sys/module").join(name).join("refcnt").exists()
}

/// Whether vhost_iocm is loaded.
pub fn iocm_is_loaded() -> bool {
    is_loaded("vhost_iocm")
}

fn file() -> Result<PathBuf> {
    std::env::var_os("VHOST_IOCM_KO")
        .map(PathBuf::from)
        .context("VHOST_IOCM_KO does not name the module")
}

/// Loads vhost_iocm with these parameters.
pub fn load(parameters: &str) -> Result<()> {
    let path = file()?;
    let module = File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let parameters = CString::new(parameters)?;
    finit_module(module, &parameters, ModuleInitFlags::empty())
        .with_context(|| format!("load {} {parameters:?}", path.display()))
}

/// Unloads vhost_iocm, without waiting for anybody who uses it.
pub fn unload() -> Result<(), Errno> {
    delete_module(NAME, DeleteModuleFlags::O_NONBLOCK)
}

/// Unloads vhost_iocm if it is loaded.
pub fn ensure_unloaded() -> Result<()> {
    if iocm_is_loaded() {
        unload().context("unload vhost_iocm")?;
    }
    Ok(())
}

/// Loads or unloads a module of the kernel's own, with what it depends on.
pub fn modprobe(arguments: &[&str]) -> Result<()> {
    let output = Command::new("modprobe")
        .args(arguments)
        .output()
        .context("run modprobe")?;
    ensure!(
        output.status.success(),
        "modprobe {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
