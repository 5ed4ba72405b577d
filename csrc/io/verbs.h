// The calls of libibverbs that the RDMA transport makes, found when they are first wanted.
//
// The library is opened with dlopen, so neither the core nor its users need it; only its header is
// needed, when the core is built. Names and results are libibverbs' own: pointers that are null and
// numbers that are not zero are failures, with errno where its manual says so.
//
// An interface and not a struct of pointers, so that tests can stand in a fabric of their own.
//
// Threads: as libibverbs: all calls from any thread.
#pragma once

#include <infiniband/verbs.h>
#include <sys/types.h>

#include <cstdint>

#include "base/status.h"

namespace hicache {

class Verbs {
 public:
  virtual ~Verbs() = default;

  /// The library of this machine, loaded once. kUnsupported: it is not there, or too old; says
  /// which package has it.
  static Result<const Verbs*> load();

  virtual ibv_device** get_device_list(int* count) const = 0;
  virtual void free_device_list(ibv_device** list) const = 0;
  virtual const char* get_device_name(ibv_device* device) const = 0;
  virtual ibv_context* open_device(ibv_device* device) const = 0;
  virtual int close_device(ibv_context* context) const = 0;

  virtual int query_device(ibv_context* context, ibv_device_attr* attributes) const = 0;
  virtual int query_port(ibv_context* context, uint8_t port, ibv_port_attr* attributes) const = 0;
  /// The GIDs of all ports. Returns how many there are, or -errno.
  virtual ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries,
                                  size_t entries_max) const = 0;
  /// Whether RC queue pairs can READ and WRITE memory that is paged in on demand.
  virtual bool offers_odp(ibv_context* context) const = 0;

  virtual int get_async_event(ibv_context* context, ibv_async_event* event) const = 0;
  virtual void ack_async_event(ibv_async_event* event) const = 0;

  virtual ibv_pd* alloc_pd(ibv_context* context) const = 0;
  virtual int dealloc_pd(ibv_pd* domain) const = 0;
  /// Optional access flags (relaxed ordering) that the device does not know are left out.
  virtual ibv_mr* register_memory(ibv_pd* domain, void* address, size_t size,
                                  unsigned access) const = 0;
  /// Memory behind a dma-buf, from `offset` on, which is then addressed from `address` on. Fails
  /// with EOPNOTSUPP where the library or the device has none of it.
  virtual ibv_mr* register_dmabuf(ibv_pd* domain, int dmabuf, uint64_t offset, size_t size,
                                  uint64_t address, unsigned access) const = 0;
  virtual int deregister_memory(ibv_mr* region) const = 0;

  virtual ibv_comp_channel* create_channel(ibv_context* context) const = 0;
  virtual int destroy_channel(ibv_comp_channel* channel) const = 0;
  virtual ibv_cq* create_cq(ibv_context* context, int entries, void* cq_context,
                            ibv_comp_channel* channel) const = 0;
  /// Blocks until all events of it are acknowledged.
  virtual int destroy_cq(ibv_cq* queue) const = 0;
  virtual int get_cq_event(ibv_comp_channel* channel, ibv_cq** queue, void** cq_context) const = 0;
  virtual void ack_cq_events(ibv_cq* queue, unsigned count) const = 0;

  virtual ibv_qp* create_qp(ibv_pd* domain, ibv_qp_init_attr* attributes) const = 0;
  virtual int modify_qp(ibv_qp* pair, ibv_qp_attr* attributes, int mask) const = 0;
  virtual int query_qp(ibv_qp* pair, ibv_qp_attr* attributes, int mask,
                       ibv_qp_init_attr* init) const = 0;
  virtual int destroy_qp(ibv_qp* pair) const = 0;

  virtual int request_notify(ibv_cq* queue) const = 0;
  virtual int poll_cq(ibv_cq* queue, int count, ibv_wc* completions) const = 0;
  virtual int post_send(ibv_qp* pair, ibv_send_wr* requests, ibv_send_wr** bad) const = 0;
};

}  // namespace hicache
