// The parts of the module, one function a file.
#pragma once

#include <nanobind/nanobind.h>

namespace hicache {

void bind_node(nanobind::module_& m);
void bind_client(nanobind::module_& m);
void bind_copy(nanobind::module_& m);
void bind_eviction(nanobind::module_& m);
void bind_transfer(nanobind::module_& m);
void bind_directory(nanobind::module_& m);

}  // namespace hicache
