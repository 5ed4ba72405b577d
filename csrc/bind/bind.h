// The parts of the module, one function a file.
#pragma once

#include <nanobind/nanobind.h>

namespace hicache {

class Client;

void bind_node(nanobind::module_& m);
void bind_stages(nanobind::module_& m);
void bind_client(nanobind::module_& m);
/// The calls about named objects, in a file of their own.
void bind_objects(nanobind::module_& m, nanobind::class_<Client>& client);
void bind_copy(nanobind::module_& m);
void bind_eviction(nanobind::module_& m);
void bind_transfer(nanobind::module_& m);
void bind_directory(nanobind::module_& m);

}  // namespace hicache
