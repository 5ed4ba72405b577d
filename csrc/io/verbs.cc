#include "io/verbs.h"

#include <dlfcn.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>

namespace hicache {
namespace {

constexpr std::array kLibraryNames = {"libibverbs.so.1", "libibverbs.so"};

// query_port and reg_mr are macros in the header, over functions of the same names.
#undef ibv_query_port
#undef ibv_reg_mr

using RegisterMemory = ibv_mr*(ibv_pd*, void*, size_t, int);
using RegisterMemoryIova = ibv_mr*(ibv_pd*, void*, size_t, uint64_t, unsigned);
using QueryPort = int(ibv_context*, uint8_t, _compat_ibv_port_attr*);
using QueryGidTable = ssize_t(ibv_context*, ibv_gid_entry*, size_t, uint32_t, size_t);

/// Functions that the library exports. Each is of the oldest version that has its present meaning.
struct Functions {
  decltype(&::ibv_get_device_list) get_device_list;
  decltype(&::ibv_free_device_list) free_device_list;
  decltype(&::ibv_get_device_name) get_device_name;
  decltype(&::ibv_open_device) open_device;
  decltype(&::ibv_close_device) close_device;
  decltype(&::ibv_query_device) query_device;
  QueryPort* query_port;
  QueryGidTable* query_gid_table;
  decltype(&::ibv_get_async_event) get_async_event;
  decltype(&::ibv_ack_async_event) ack_async_event;
  decltype(&::ibv_alloc_pd) alloc_pd;
  decltype(&::ibv_dealloc_pd) dealloc_pd;
  RegisterMemory* reg_mr;
  RegisterMemoryIova* reg_mr_iova2;
  decltype(&::ibv_reg_dmabuf_mr) reg_dmabuf_mr;  // nullptr: a library before rdma-core 34.
  decltype(&::ibv_dereg_mr) dereg_mr;
  decltype(&::ibv_create_comp_channel) create_channel;
  decltype(&::ibv_destroy_comp_channel) destroy_channel;
  decltype(&::ibv_create_cq) create_cq;
  decltype(&::ibv_destroy_cq) destroy_cq;
  decltype(&::ibv_get_cq_event) get_cq_event;
  decltype(&::ibv_ack_cq_events) ack_cq_events;
  decltype(&::ibv_create_qp) create_qp;
  decltype(&::ibv_modify_qp) modify_qp;
  decltype(&::ibv_query_qp) query_qp;
  decltype(&::ibv_destroy_qp) destroy_qp;
};

class Symbols {
 public:
  explicit Symbols(void* library) : library_(library) {}

  template <typename Function>
  void find(Function*& function, const char* name, const char* version) {
    find_if_there(function, name, version);
    if (function == nullptr) missing_ += (missing_.empty() ? "" : ", ") + std::string(name);
  }
  template <typename Function>
  void find_if_there(Function*& function, const char* name, const char* version) {
    function = reinterpret_cast<Function*>(dlvsym(library_, name, version));
  }
  const std::string& missing() const { return missing_; }

 private:
  void* library_;
  std::string missing_;
};

/// Returns the names of those that are missing.
std::string find_functions(void* library, Functions& functions) {
  Symbols symbols(library);
  symbols.find(functions.get_device_list, "ibv_get_device_list", "IBVERBS_1.1");
  symbols.find(functions.free_device_list, "ibv_free_device_list", "IBVERBS_1.1");
  symbols.find(functions.get_device_name, "ibv_get_device_name", "IBVERBS_1.1");
  symbols.find(functions.open_device, "ibv_open_device", "IBVERBS_1.1");
  symbols.find(functions.close_device, "ibv_close_device", "IBVERBS_1.1");
  symbols.find(functions.query_device, "ibv_query_device", "IBVERBS_1.1");
  symbols.find(functions.query_port, "ibv_query_port", "IBVERBS_1.1");
  symbols.find(functions.query_gid_table, "_ibv_query_gid_table", "IBVERBS_1.11");
  symbols.find(functions.get_async_event, "ibv_get_async_event", "IBVERBS_1.1");
  symbols.find(functions.ack_async_event, "ibv_ack_async_event", "IBVERBS_1.1");
  symbols.find(functions.alloc_pd, "ibv_alloc_pd", "IBVERBS_1.1");
  symbols.find(functions.dealloc_pd, "ibv_dealloc_pd", "IBVERBS_1.1");
  symbols.find(functions.reg_mr, "ibv_reg_mr", "IBVERBS_1.1");
  symbols.find(functions.reg_mr_iova2, "ibv_reg_mr_iova2", "IBVERBS_1.8");
  symbols.find_if_there(functions.reg_dmabuf_mr, "ibv_reg_dmabuf_mr", "IBVERBS_1.12");
  symbols.find(functions.dereg_mr, "ibv_dereg_mr", "IBVERBS_1.1");
  symbols.find(functions.create_channel, "ibv_create_comp_channel", "IBVERBS_1.0");
  symbols.find(functions.destroy_channel, "ibv_destroy_comp_channel", "IBVERBS_1.0");
  symbols.find(functions.create_cq, "ibv_create_cq", "IBVERBS_1.1");
  symbols.find(functions.destroy_cq, "ibv_destroy_cq", "IBVERBS_1.1");
  symbols.find(functions.get_cq_event, "ibv_get_cq_event", "IBVERBS_1.1");
  symbols.find(functions.ack_cq_events, "ibv_ack_cq_events", "IBVERBS_1.1");
  symbols.find(functions.create_qp, "ibv_create_qp", "IBVERBS_1.1");
  symbols.find(functions.modify_qp, "ibv_modify_qp", "IBVERBS_1.1");
  symbols.find(functions.query_qp, "ibv_query_qp", "IBVERBS_1.1");
  symbols.find(functions.destroy_qp, "ibv_destroy_qp", "IBVERBS_1.1");
  return symbols.missing();
}

class Library final : public Verbs {
 public:
  explicit Library(const Functions& functions) : calls_(functions) {}

  ibv_device** get_device_list(int* count) const override { return calls_.get_device_list(count); }
  void free_device_list(ibv_device** list) const override { calls_.free_device_list(list); }
  const char* get_device_name(ibv_device* device) const override {
    return calls_.get_device_name(device);
  }
  ibv_context* open_device(ibv_device* device) const override { return calls_.open_device(device); }
  int close_device(ibv_context* context) const override { return calls_.close_device(context); }

  int query_device(ibv_context* context, ibv_device_attr* attributes) const override {
    return calls_.query_device(context, attributes);
  }
  int query_port(ibv_context* context, uint8_t port, ibv_port_attr* attributes) const override {
    // The function fills what its oldest callers know, which is how the struct begins.
    std::memset(attributes, 0, sizeof(*attributes));
    return calls_.query_port(context, port, reinterpret_cast<_compat_ibv_port_attr*>(attributes));
  }
  ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries,
                          size_t entries_max) const override {
    return calls_.query_gid_table(context, entries, entries_max, 0, sizeof(*entries));
  }
  bool offers_odp(ibv_context* context) const override {
    verbs_context* extended = verbs_get_ctx_op(context, query_device_ex);
    ibv_device_attr_ex attributes{};
    if (extended == nullptr ||
        extended->query_device_ex(context, nullptr, &attributes, sizeof(attributes)) != 0) {
      return false;
    }
    constexpr uint32_t kWanted = IBV_ODP_SUPPORT_READ | IBV_ODP_SUPPORT_WRITE;
    return (attributes.odp_caps.general_caps & IBV_ODP_SUPPORT) != 0 &&
           (attributes.odp_caps.per_transport_caps.rc_odp_caps & kWanted) == kWanted;
  }

  int get_async_event(ibv_context* context, ibv_async_event* event) const override {
    return calls_.get_async_event(context, event);
  }
  void ack_async_event(ibv_async_event* event) const override { calls_.ack_async_event(event); }

  ibv_pd* alloc_pd(ibv_context* context) const override { return calls_.alloc_pd(context); }
  int dealloc_pd(ibv_pd* domain) const override { return calls_.dealloc_pd(domain); }
  ibv_mr* register_memory(ibv_pd* domain, void* address, size_t size,
                          unsigned access) const override {
    if ((access & IBV_ACCESS_OPTIONAL_RANGE) == 0) {
      return calls_.reg_mr(domain, address, size, static_cast<int>(access));
    }
    return calls_.reg_mr_iova2(domain, address, size, reinterpret_cast<uintptr_t>(address), access);
  }
  ibv_mr* register_dmabuf(ibv_pd* domain, int dmabuf, uint64_t offset, size_t size,
                          uint64_t address, unsigned access) const override {
    if (calls_.reg_dmabuf_mr == nullptr) {
      errno = EOPNOTSUPP;
      return nullptr;
    }
    return calls_.reg_dmabuf_mr(domain, offset, size, address, dmabuf, static_cast<int>(access));
  }
  int deregister_memory(ibv_mr* region) const override { return calls_.dereg_mr(region); }

  ibv_comp_channel* create_channel(ibv_context* context) const override {
    return calls_.create_channel(context);
  }
  int destroy_channel(ibv_comp_channel* channel) const override {
    return calls_.destroy_channel(channel);
  }
  ibv_cq* create_cq(ibv_context* context, int entries, void* cq_context,
                    ibv_comp_channel* channel) const override {
    return calls_.create_cq(context, entries, cq_context, channel, 0);
  }
  int destroy_cq(ibv_cq* queue) const override { return calls_.destroy_cq(queue); }
  int get_cq_event(ibv_comp_channel* channel, ibv_cq** queue, void** cq_context) const override {
    return calls_.get_cq_event(channel, queue, cq_context);
  }
  void ack_cq_events(ibv_cq* queue, unsigned count) const override {
    calls_.ack_cq_events(queue, count);
  }

  ibv_qp* create_qp(ibv_pd* domain, ibv_qp_init_attr* attributes) const override {
    return calls_.create_qp(domain, attributes);
  }
  int modify_qp(ibv_qp* pair, ibv_qp_attr* attributes, int mask) const override {
    return calls_.modify_qp(pair, attributes, mask);
  }
  int query_qp(ibv_qp* pair, ibv_qp_attr* attributes, int mask,
               ibv_qp_init_attr* init) const override {
    return calls_.query_qp(pair, attributes, mask, init);
  }
  int destroy_qp(ibv_qp* pair) const override { return calls_.destroy_qp(pair); }

  // These three are the provider's own, behind the context.
  int request_notify(ibv_cq* queue) const override { return ibv_req_notify_cq(queue, 0); }
  int poll_cq(ibv_cq* queue, int count, ibv_wc* completions) const override {
    return ibv_poll_cq(queue, count, completions);
  }
  int post_send(ibv_qp* pair, ibv_send_wr* requests, ibv_send_wr** bad) const override {
    return ibv_post_send(pair, requests, bad);
  }

 private:
  const Functions calls_;
};

/// Never closed: providers keep threads and descriptors of their own.
Result<const Verbs*> load_library() {
  void* library = nullptr;
  for (const char* name : kLibraryNames) {
    if (library == nullptr) library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) {
    const char* reason = dlerror();
    return Status(Code::kUnsupported,
                  std::string("RDMA: loading libibverbs.so.1: ") +
                      (reason != nullptr ? reason : "not found") +
                      "; install it (Debian, Ubuntu: apt-get install libibverbs1 "
                      "ibverbs-providers), or leave the RDMA transport out");
  }
  Functions functions{};
  if (const std::string missing = find_functions(library, functions); !missing.empty()) {
    return Status(Code::kUnsupported, "RDMA: libibverbs.so.1 is too old, it lacks " + missing +
                                          "; version 32 (2020) or newer is needed");
  }
  static const Library verbs(functions);
  return &verbs;
}

}  // namespace

Result<const Verbs*> Verbs::load() {
  static const Result<const Verbs*> loaded = load_library();
  return loaded;
}

}  // namespace hicache
