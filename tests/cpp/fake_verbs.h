// A fabric of RDMA devices in this process's memory, for what real ones do not do when asked to.
//
// Requests are carried out by one thread, in the order in which they were posted, with memcpy
// between the real addresses; keys, ranges and rights are checked as a device does. Faults are set
// through `faults`, and hold until they are set otherwise.
//
// Threads: any, as libibverbs.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "io/verbs.h"

namespace hicache::testing {

class FakeVerbs final : public Verbs {
 public:
  static constexpr int kEveryDevice = -2;

  struct Faults {
    std::atomic<int> open_errno{0};
    /// Registering by address fails on the device of that index, or kEveryDevice.
    std::atomic<int> register_fails_on{-1};
    std::atomic<int> register_errno{ENOMEM};
    /// Memory of GPUs can be registered as dma-buf.
    std::atomic<bool> has_dmabuf{false};
    /// Making a completion queue that tells of completions fails on the device of that index.
    std::atomic<int> create_queue_fails_on{-1};
    std::atomic<int> create_pair_errno{0};
    std::atomic<uint32_t> inline_max{256};
    /// The status of the next completion of a request that moves bytes.
    std::atomic<int> next_status{IBV_WC_SUCCESS};
    /// The peer refuses requests that move exactly that many bytes; 0: none.
    std::atomic<uint64_t> refused_size{0};
    /// Requests that move bytes are not carried out; a flush still brings them back.
    std::atomic<bool> is_silent{false};
    /// Not even a flush brings anything back.
    std::atomic<bool> is_stuck{false};
    /// A list of requests is posted up to here; UINT64_MAX: wholly.
    std::atomic<uint64_t> post_max{UINT64_MAX};
    std::atomic<uint64_t> region_size_max{uint64_t{1} << 40};
  };

  explicit FakeVerbs(std::vector<std::string> names) {
    for (size_t i = 0; i < names.size(); ++i) {
      auto device = std::make_unique<Device>();
      device->name = names[i];
      device->index = static_cast<int>(i);
      devices_.push_back(std::move(device));
    }
    worker_ = std::thread([this] { work(); });
  }
  ~FakeVerbs() override {
    {
      const std::lock_guard lock(mutex_);
      is_ending_ = true;
      wake_.notify_all();
    }
    worker_.join();
  }

  mutable Faults faults;

  /// Takes a device's port down or up, and tells everybody who has it open.
  void set_port(const std::string& name, bool is_up) const {
    const std::lock_guard lock(mutex_);
    for (const auto& device : devices_) {
      if (device->name != name) continue;
      device->is_up = is_up;
      for (Context* context : device->contexts) {
        context->events.push_back(is_up ? IBV_EVENT_PORT_ACTIVE : IBV_EVENT_PORT_ERR);
        context->async.signal();
      }
    }
  }
  /// After a fault was lifted: what waited goes on.
  void resume() const {
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  /// How many objects are open: to be 0 in the end.
  size_t open_count() const {
    const std::lock_guard lock(mutex_);
    return open_;
  }
  /// Requests that asked for a completion, and all requests.
  uint64_t signalled_count() const { return signalled_; }
  uint64_t posted_count() const { return posted_; }
  uint64_t inlined_count() const { return inlined_; }
  /// Bytes that requests of the device of that index have moved.
  uint64_t moved_bytes(int device) const {
    const std::lock_guard lock(mutex_);
    return devices_[static_cast<size_t>(device)]->moved_bytes;
  }

  // ---- devices

  ibv_device** get_device_list(int* count) const override {
    auto list = std::make_unique<ibv_device*[]>(devices_.size() + 1);
    for (size_t i = 0; i < devices_.size(); ++i) list[i] = devices_[i].get();
    list[devices_.size()] = nullptr;
    *count = static_cast<int>(devices_.size());
    return list.release();
  }
  void free_device_list(ibv_device** list) const override {
    std::unique_ptr<ibv_device*[]> owner(list);
  }
  const char* get_device_name(ibv_device* device) const override {
    return static_cast<Device*>(device)->name.c_str();
  }
  ibv_context* open_device(ibv_device* device) const override {
    if (faults.open_errno != 0) {
      errno = faults.open_errno;
      return nullptr;
    }
    auto context = std::make_unique<Context>();
    context->device = device;
    context->async_fd = context->async.read_end();
    const std::lock_guard lock(mutex_);
    static_cast<Device*>(device)->contexts.push_back(context.get());
    ++open_;
    return context.release();
  }
  int close_device(ibv_context* context) const override {
    const std::lock_guard lock(mutex_);
    const std::unique_ptr<Context> owner(static_cast<Context*>(context));
    std::erase(device_of(context).contexts, owner.get());
    --open_;
    return 0;
  }
  int query_device(ibv_context*, ibv_device_attr* attributes) const override {
    *attributes = {};
    attributes->max_mr_size = faults.region_size_max;
    attributes->max_mr = 1 << 20;
    attributes->max_qp = 1 << 16;
    attributes->max_qp_wr = 1 << 14;
    attributes->max_cqe = 1 << 20;
    attributes->max_qp_rd_atom = 16;
    attributes->max_qp_init_rd_atom = 16;
    attributes->phys_port_cnt = 1;
    return 0;
  }
  int query_port(ibv_context* context, uint8_t, ibv_port_attr* attributes) const override {
    *attributes = {};
    const std::lock_guard lock(mutex_);
    attributes->state = device_of(context).is_up ? IBV_PORT_ACTIVE : IBV_PORT_DOWN;
    attributes->active_mtu = IBV_MTU_4096;
    attributes->max_msg_sz = 1U << 30;
    attributes->link_layer = IBV_LINK_LAYER_ETHERNET;
    attributes->active_width = 2;
    attributes->active_speed = 32;
    return 0;
  }
  ssize_t query_gid_table(ibv_context* context, ibv_gid_entry* entries,
                          size_t entries_max) const override {
    if (entries_max == 0) return 0;
    entries[0] = {};
    entries[0].port_num = 1;
    entries[0].gid_type = IBV_GID_TYPE_ROCE_V2;
    entries[0].gid.raw[10] = entries[0].gid.raw[11] = 0xff;
    entries[0].gid.raw[12] = 10;
    entries[0].gid.raw[15] = static_cast<uint8_t>(device_of(context).index + 1);
    return 1;
  }
  bool offers_odp(ibv_context*) const override { return false; }

  int get_async_event(ibv_context* context, ibv_async_event* event) const override {
    const std::lock_guard lock(mutex_);
    Context& own = *static_cast<Context*>(context);
    own.async.take();
    if (own.events.empty()) return fail(EAGAIN);
    *event = {};
    event->event_type = own.events.front();
    event->element.port_num = 1;
    own.events.pop_front();
    return 0;
  }
  void ack_async_event(ibv_async_event*) const override {}

  // ---- memory

  ibv_pd* alloc_pd(ibv_context* context) const override {
    auto domain = std::make_unique<ibv_pd>();
    domain->context = context;
    return count_open(domain.release());
  }
  int dealloc_pd(ibv_pd* domain) const override { return drop_open(domain); }

  ibv_mr* register_memory(ibv_pd* domain, void* address, size_t size,
                          unsigned access) const override {
    const int lame = faults.register_fails_on;
    if (lame == kEveryDevice || lame == device_of(domain->context).index) {
      errno = faults.register_errno;
      return nullptr;
    }
    if (size > faults.region_size_max) {
      errno = EINVAL;
      return nullptr;
    }
    auto region = std::make_unique<ibv_mr>();
    region->context = domain->context;
    region->pd = domain;
    region->addr = address;
    region->length = size;
    const std::lock_guard lock(mutex_);
    region->lkey = region->rkey = next_key_++;
    regions_[region->lkey] = {
        reinterpret_cast<uintptr_t>(address), size,   access, domain->context->device,
        static_cast<uint8_t*>(address),       nullptr};
    ++open_;
    return region.release();
  }
  ibv_mr* register_dmabuf(ibv_pd* domain, int dmabuf, uint64_t offset, size_t size,
                          uint64_t address, unsigned access) const override {
    const uint64_t whole = offset + size;
    void* inside = faults.has_dmabuf
                       ? mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0)
                       : MAP_FAILED;
    if (inside == MAP_FAILED) {
      errno = EOPNOTSUPP;
      return nullptr;
    }
    auto region = std::make_unique<ibv_mr>();
    region->context = domain->context;
    region->pd = domain;
    const std::lock_guard lock(mutex_);
    region->lkey = region->rkey = next_key_++;
    const std::shared_ptr<void> mapping(inside, [whole](void* it) { munmap(it, whole); });
    regions_[region->lkey] = {
        address, size, access, domain->context->device, static_cast<uint8_t*>(inside) + offset,
        mapping};
    ++open_;
    return region.release();
  }
  int deregister_memory(ibv_mr* region) const override {
    {
      const std::lock_guard lock(mutex_);
      regions_.erase(region->lkey);
    }
    return drop_open(region);
  }

  // ---- completions

  ibv_comp_channel* create_channel(ibv_context* context) const override {
    auto channel = std::make_unique<Channel>();
    channel->context = context;
    channel->fd = channel->pipe.read_end();
    return count_open(channel.release());
  }
  int destroy_channel(ibv_comp_channel* channel) const override {
    return drop_open(static_cast<Channel*>(channel));
  }
  ibv_cq* create_cq(ibv_context* context, int entries, void* cq_context,
                    ibv_comp_channel* channel) const override {
    if (channel != nullptr && device_of(context).index == faults.create_queue_fails_on) {
      errno = ENOMEM;
      return nullptr;
    }
    auto queue = std::make_unique<Queue>();
    queue->context = context;
    queue->cq_context = cq_context;
    queue->channel = channel;
    queue->cqe = entries;
    return count_open(queue.release());
  }
  int destroy_cq(ibv_cq* queue) const override {
    Queue* own = static_cast<Queue*>(queue);
    {
      std::unique_lock lock(mutex_);
      if (own->channel != nullptr) {
        std::erase(static_cast<Channel*>(own->channel)->pending, own);
      }
      acked_.wait(lock, [own] { return own->unacked == 0; });
    }
    return drop_open(own);
  }
  int get_cq_event(ibv_comp_channel* channel, ibv_cq** queue, void** cq_context) const override {
    const std::lock_guard lock(mutex_);
    Channel& own = *static_cast<Channel*>(channel);
    own.pipe.take();
    if (own.pending.empty()) return fail(EAGAIN);
    Queue* found = own.pending.front();
    own.pending.pop_front();
    ++found->unacked;
    *queue = found;
    *cq_context = found->cq_context;
    return 0;
  }
  void ack_cq_events(ibv_cq* queue, unsigned count) const override {
    const std::lock_guard lock(mutex_);
    static_cast<Queue*>(queue)->unacked -= count;
    acked_.notify_all();
  }
  int request_notify(ibv_cq* queue) const override {
    const std::lock_guard lock(mutex_);
    static_cast<Queue*>(queue)->is_armed = true;
    return 0;
  }
  int poll_cq(ibv_cq* queue, int count, ibv_wc* completions) const override {
    const std::lock_guard lock(mutex_);
    Queue& own = *static_cast<Queue*>(queue);
    int taken = 0;
    for (; taken < count && !own.completions.empty(); ++taken) {
      completions[taken] = own.completions.front();
      own.completions.pop_front();
    }
    return taken;
  }

  // ---- queue pairs

  ibv_qp* create_qp(ibv_pd* domain, ibv_qp_init_attr* attributes) const override {
    if (faults.create_pair_errno != 0 || attributes->cap.max_inline_data > faults.inline_max) {
      errno = faults.create_pair_errno != 0 ? faults.create_pair_errno.load() : EINVAL;
      return nullptr;
    }
    auto pair = std::make_unique<Pair>();
    pair->context = domain->context;
    pair->pd = domain;
    pair->send_cq = attributes->send_cq;
    pair->depth = attributes->cap.max_send_wr;
    const std::lock_guard lock(mutex_);
    pair->qp_num = next_pair_++;
    pairs_[pair->qp_num] = pair.get();
    ++open_;
    return pair.release();
  }
  int modify_qp(ibv_qp* pair, ibv_qp_attr* attributes, int mask) const override {
    const std::lock_guard lock(mutex_);
    Pair& own = *static_cast<Pair*>(pair);
    own.state = attributes->qp_state;
    if ((mask & IBV_QP_DEST_QPN) != 0) own.peer = attributes->dest_qp_num;
    wake_.notify_all();
    return 0;
  }
  int query_qp(ibv_qp* pair, ibv_qp_attr* attributes, int, ibv_qp_init_attr*) const override {
    const std::lock_guard lock(mutex_);
    *attributes = {};
    attributes->rq_psn = static_cast<Pair*>(pair)->received;
    return 0;
  }
  int destroy_qp(ibv_qp* pair) const override {
    Pair* own = static_cast<Pair*>(pair);
    {
      const std::lock_guard lock(mutex_);
      pairs_.erase(own->qp_num);
    }
    return drop_open(own);
  }
  int post_send(ibv_qp* pair, ibv_send_wr* requests, ibv_send_wr** bad) const override {
    const std::lock_guard lock(mutex_);
    Pair& own = *static_cast<Pair*>(pair);
    uint64_t count = 0;
    for (ibv_send_wr* request = requests; request != nullptr; request = request->next, ++count) {
      if (count == faults.post_max || own.requests.size() == own.depth) {
        *bad = request;
        return ENOMEM;
      }
      Request copy{*request, {}};
      if (request->num_sge != 0) copy.range = *request->sg_list;
      posted_ += 1;
      signalled_ += (request->send_flags & IBV_SEND_SIGNALED) != 0 ? 1 : 0;
      inlined_ += (request->send_flags & IBV_SEND_INLINE) != 0 ? 1 : 0;
      own.requests.push_back(copy);
    }
    wake_.notify_all();
    return 0;
  }

 private:
  /// A descriptor that is readable while something waits.
  class Pipe {
   public:
    Pipe() {
      if (pipe2(ends_, O_CLOEXEC | O_NONBLOCK) != 0) std::abort();
    }
    ~Pipe() {
      close(ends_[0]);
      close(ends_[1]);
    }
    int read_end() const { return ends_[0]; }
    void signal() const {
      const char one = 1;
      while (write(ends_[1], &one, 1) < 0 && errno == EINTR) {
      }
    }
    void take() const {
      char one;
      while (read(ends_[0], &one, 1) < 0 && errno == EINTR) {
      }
    }

   private:
    int ends_[2];
  };

  struct Context : ibv_context {
    Context() { std::memset(static_cast<ibv_context*>(this), 0, sizeof(ibv_context)); }
    Pipe async;
    std::deque<ibv_event_type> events;
  };
  struct Device : ibv_device {
    Device() { std::memset(static_cast<ibv_device*>(this), 0, sizeof(ibv_device)); }
    std::string name;
    int index = 0;
    bool is_up = true;
    uint64_t moved_bytes = 0;
    std::vector<Context*> contexts;
  };
  struct Queue : ibv_cq {
    std::deque<ibv_wc> completions;
    bool is_armed = false;
    unsigned unacked = 0;
  };
  struct Channel : ibv_comp_channel {
    Pipe pipe;
    std::deque<Queue*> pending;
  };
  struct Request {
    ibv_send_wr request;
    ibv_sge range;
  };
  struct Pair : ibv_qp {
    ibv_qp_state state = IBV_QPS_RESET;
    uint32_t peer = 0;
    uint32_t received = 0;
    size_t depth = 0;
    std::deque<Request> requests;
  };
  struct Region {
    uint64_t address;
    uint64_t size;
    unsigned access;
    ibv_device* device;
    uint8_t* inside;  // Where this process has it: elsewhere, for a dma-buf.
    std::shared_ptr<void> mapping;
  };

  static int fail(int error_number) {
    errno = error_number;
    return -1;
  }
  static Device& device_of(ibv_context* context) { return *static_cast<Device*>(context->device); }
  template <typename Opened>
  Opened* count_open(Opened* opened) const {
    const std::lock_guard lock(mutex_);
    ++open_;
    return opened;
  }
  template <typename Opened>
  int drop_open(Opened* opened) const {
    const std::unique_ptr<Opened> owner(opened);
    const std::lock_guard lock(mutex_);
    --open_;
    return 0;
  }

  /// Locked. Whether that key gives that right on the whole range, on the device of `context`.
  bool is_allowed(ibv_context* context, uint32_t key, uint64_t address, uint64_t size,
                  unsigned right) const {
    const auto found = regions_.find(key);
    if (found == regions_.end()) return false;
    const Region& region = found->second;
    return region.device == context->device && (region.access & right) == right &&
           address >= region.address && address - region.address <= region.size &&
           size <= region.size - (address - region.address);
  }

  /// Locked. Carries a request out, or says why not.
  ibv_wc_status carry_out(Pair& pair, const Request& one) const {
    if (pair.state == IBV_QPS_ERR) return IBV_WC_WR_FLUSH_ERR;
    const bool moves = one.request.num_sge != 0;
    if (moves && faults.next_status != IBV_WC_SUCCESS) {
      return static_cast<ibv_wc_status>(faults.next_status.exchange(IBV_WC_SUCCESS));
    }
    const auto peer = pairs_.find(pair.peer);
    const bool answers = peer != pairs_.end() && peer->second->state != IBV_QPS_ERR &&
                         device_of(pair.context).is_up && device_of(peer->second->context).is_up;
    if (!answers) return IBV_WC_RETRY_EXC_ERR;
    ++peer->second->received;
    if (!moves) return IBV_WC_SUCCESS;
    const bool writes = one.request.opcode == IBV_WR_RDMA_WRITE;
    const bool is_inline = (one.request.send_flags & IBV_SEND_INLINE) != 0;
    const uint64_t remote = one.request.wr.rdma.remote_addr;
    const uint64_t size = one.range.length;
    if (!is_inline && !is_allowed(pair.context, one.range.lkey, one.range.addr, size,
                                  writes ? 0 : IBV_ACCESS_LOCAL_WRITE)) {
      return IBV_WC_LOC_PROT_ERR;
    }
    const bool is_refused = size == faults.refused_size;
    if (is_refused || !is_allowed(peer->second->context, one.request.wr.rdma.rkey, remote, size,
                                  writes ? IBV_ACCESS_REMOTE_WRITE : IBV_ACCESS_REMOTE_READ)) {
      return IBV_WC_REM_ACCESS_ERR;
    }
    const auto inside = [this](uint32_t key, uint64_t address) {
      const Region& region = regions_.at(key);
      return region.inside + (address - region.address);
    };
    void* local_bytes = is_inline ? reinterpret_cast<uint8_t*>(one.range.addr)
                                  : inside(one.range.lkey, one.range.addr);
    void* remote_bytes = inside(one.request.wr.rdma.rkey, remote);
    if (writes) std::memcpy(remote_bytes, local_bytes, size);
    if (!writes) std::memcpy(local_bytes, remote_bytes, size);
    device_of(pair.context).moved_bytes += size;
    return IBV_WC_SUCCESS;
  }

  /// Locked. Whether the pair's next request may go on now.
  bool is_due(const Pair& pair) const {
    if (pair.requests.empty() || faults.is_stuck) return false;
    const bool moves = pair.requests.front().request.num_sge != 0;
    return pair.state == IBV_QPS_ERR || !(faults.is_silent && moves);
  }

  void work() {
    std::unique_lock lock(mutex_);
    while (!is_ending_) {
      bool any = false;
      std::vector<uint32_t> numbers;
      for (const auto& [number, pair] : pairs_) {
        if (is_due(*pair)) numbers.push_back(number);
      }
      for (const uint32_t number : numbers) {
        const auto found = pairs_.find(number);
        if (found == pairs_.end() || !is_due(*found->second)) continue;
        step(*found->second);
        any = true;
        lock.unlock();  // Others get a turn between any two requests.
        lock.lock();
      }
      if (!any) wake_.wait(lock);
    }
  }

  void step(Pair& pair) const {
    const Request one = pair.requests.front();
    pair.requests.pop_front();
    const ibv_wc_status status = carry_out(pair, one);
    if (status != IBV_WC_SUCCESS) pair.state = IBV_QPS_ERR;
    if (status == IBV_WC_SUCCESS && (one.request.send_flags & IBV_SEND_SIGNALED) == 0) return;
    ibv_wc completion{};
    completion.wr_id = one.request.wr_id;
    completion.status = status;
    completion.qp_num = pair.qp_num;
    Queue& queue = *static_cast<Queue*>(pair.send_cq);
    queue.completions.push_back(completion);
    if (!queue.is_armed || queue.channel == nullptr) return;
    queue.is_armed = false;
    static_cast<Channel*>(queue.channel)->pending.push_back(&queue);
    static_cast<Channel*>(queue.channel)->pipe.signal();
  }

  std::vector<std::unique_ptr<Device>> devices_;
  mutable std::mutex mutex_;  // Of what follows, and of what the devices' objects hold.
  mutable std::condition_variable wake_;
  mutable std::condition_variable acked_;
  mutable std::map<uint32_t, Region> regions_;
  mutable std::map<uint32_t, Pair*> pairs_;
  mutable uint32_t next_key_ = 100;
  mutable uint32_t next_pair_ = 1000;
  mutable size_t open_ = 0;
  mutable std::atomic<uint64_t> posted_{0};
  mutable std::atomic<uint64_t> signalled_{0};
  mutable std::atomic<uint64_t> inlined_{0};
  bool is_ending_ = false;
  std::thread worker_;  // Last: it uses all of the above.
};

}  // namespace hicache::testing
