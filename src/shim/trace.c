// SPDX-License-Identifier: GPL-2.0
/*
 * The trace events of trace.h, and the functions by which Rust calls them.
 */
#include "shim.h"

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "trace.h"
