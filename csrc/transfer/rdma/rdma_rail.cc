#include "transfer/rdma/rdma_rail.h"

#include <fcntl.h>
#include <net/if.h>
#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace hicache {
namespace {

constexpr size_t kGidsMax = 1024;  // Their size must fit the 16 bits of the kernel call.
constexpr uint8_t kReadsMax = 128;
constexpr int kPassiveEntries = 16;
constexpr size_t kConnectorsMax = 12 + Errands::kForClosings;
/// Before other sources have their turn.
constexpr int kEventsAtOnce = 64;

uint16_t mtu_bytes(ibv_mtu mtu) {
  return static_cast<uint16_t>(128U << mtu);  // IBV_MTU_256 is 1.
}

bool set_non_blocking(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0;
}

/// Mbit/s of one lane, by the port's code.
uint32_t lane_speed_mbps(uint32_t code) {
  switch (code) {
    case 1:
      return 2'500;
    case 2:
      return 5'000;
    case 4:
    case 8:
      return 10'000;
    case 16:
      return 14'000;
    case 32:
      return 25'000;
    case 64:
      return 50'000;
    case 128:
      return 100'000;
    default:
      return 2'500;
  }
}

uint32_t lane_count(uint8_t width) {
  switch (width) {
    case 2:
      return 4;
    case 4:
      return 8;
    case 8:
      return 12;
    case 16:
      return 2;
    default:
      return 1;
  }
}

bool is_bond(uint32_t interface_index) {
  char name[IF_NAMESIZE];
  if (if_indextoname(interface_index, name) == nullptr) return false;
  return access(("/sys/class/net/" + std::string(name) + "/bonding").c_str(), F_OK) == 0;
}

GidKind gid_kind(uint32_t type) {
  switch (type) {
    case IBV_GID_TYPE_ROCE_V1:
      return GidKind::kRoceV1;
    case IBV_GID_TYPE_ROCE_V2:
      return GidKind::kRoceV2;
    default:
      return GidKind::kInfiniband;
  }
}

}  // namespace

class RdmaRail::ChannelSource final : public IoLoop::Source {
 public:
  explicit ChannelSource(RdmaRail& rail) : rail_(rail) {}
  void on_events(uint32_t) override { rail_.take_completion_events(); }
  uint64_t on_time(uint64_t now_ns) override {
    uint64_t next_ns = IoLoop::kNever;
    for (const auto& client : rail_.clients()) next_ns = std::min(next_ns, client->on_time(now_ns));
    return next_ns;
  }

 private:
  RdmaRail& rail_;
};

class RdmaRail::EventSource final : public IoLoop::Source {
 public:
  explicit EventSource(RdmaRail& rail) : rail_(rail) {}
  void on_events(uint32_t) override { rail_.take_device_events(); }
  uint64_t on_time(uint64_t) override { return IoLoop::kNever; }

 private:
  RdmaRail& rail_;
};

RdmaRail::RdmaRail(const Verbs& verbs, const RdmaSettings& settings, std::string name, uint8_t port)
    : verbs_(verbs),
      settings_(settings),
      name_(std::move(name)),
      port_(port),
      connector_(kConnectorsMax) {}

Status RdmaRail::error(Code code, const std::string& call, int error_number,
                       const std::string& remedy) const {
  return Status(code, "RDMA: " + name_ + ": " + call + ": " + std::strerror(error_number) + " (" +
                          std::to_string(error_number) + ")" +
                          (remedy.empty() ? "" : "; " + remedy));
}

Result<std::shared_ptr<RdmaRail>> RdmaRail::open(const Verbs& verbs, ibv_device* device,
                                                 uint8_t port, const std::string& name,
                                                 const RdmaSettings& settings) {
  // A private constructor, which make_shared cannot call.
  std::shared_ptr<RdmaRail> rail(
      std::unique_ptr<RdmaRail>(new RdmaRail(verbs, settings, name, port)));
  HICACHE_RETURN_IF_ERROR(rail->prepare(device));
  return rail;
}

Status RdmaRail::prepare(ibv_device* device) {
  context_ = verbs_.open_device(device);
  if (context_ == nullptr) {
    return error(Code::kUnavailable, "ibv_open_device", errno,
                 "is /dev/infiniband there and may this user open it (in a container: "
                 "--device=/dev/infiniband)?");
  }
  HICACHE_RETURN_IF_ERROR(query_limits());
  // A port that is down now may come up: it is a rail all the same, but one without an address is
  // not.
  if (const Result<RailRoute> route = query_route(); !route.ok()) {
    const std::lock_guard lock(mutex_);
    if (route_.address.mtu == 0) return route.status();
  }
  domain_ = verbs_.alloc_pd(context_);
  if (domain_ == nullptr) return error(Code::kNoSpace, "ibv_alloc_pd", errno);
  channel_ = verbs_.create_channel(context_);
  if (channel_ == nullptr) {
    return error(Code::kNoSpace, "ibv_create_comp_channel", errno, "raise `ulimit -n`");
  }
  if (!set_non_blocking(channel_->fd) || !set_non_blocking(context_->async_fd)) {
    return error(Code::kIo, "making its descriptors non-blocking", errno);
  }
  passive_queue_ = verbs_.create_cq(context_, kPassiveEntries, nullptr, nullptr);
  if (passive_queue_ == nullptr) {
    return error(Code::kNoSpace, "ibv_create_cq", errno,
                 "too much memory is locked: raise `ulimit -l`");
  }
  return start_threads();
}

Status RdmaRail::start_threads() {
  Result<std::unique_ptr<IoLoop>> loop = IoLoop::start("rdma-" + name_);
  if (!loop.ok()) return loop.status();
  loop_ = std::move(loop.value());
  for (const auto& [fd, source] : {std::pair<int, std::shared_ptr<IoLoop::Source>>{
                                       channel_->fd, std::make_shared<ChannelSource>(*this)},
                                   {context_->async_fd, std::make_shared<EventSource>(*this)}}) {
    if (const Result<uint64_t> added = loop_->add(fd, EPOLLIN, source); !added.ok()) {
      return added.status();
    }
  }
  return Status();
}

void RdmaRail::stop() {
  connector_.stop();
  loop_.reset();
}

RdmaRail::~RdmaRail() {
  stop();
  if (passive_queue_ != nullptr) (void)verbs_.destroy_cq(passive_queue_);
  if (channel_ != nullptr) (void)verbs_.destroy_channel(channel_);
  if (domain_ != nullptr) (void)verbs_.dealloc_pd(domain_);
  if (context_ != nullptr) (void)verbs_.close_device(context_);
}

Status RdmaRail::query_limits() {
  ibv_device_attr device{};
  if (const int rc = verbs_.query_device(context_, &device); rc != 0) {
    return error(Code::kIo, "ibv_query_device", rc);
  }
  ibv_port_attr port{};
  if (const int rc = verbs_.query_port(context_, port_, &port); rc != 0) {
    return error(Code::kIo, "ibv_query_port " + std::to_string(port_), rc);
  }
  limits_ = RailLimits{
      .region_size_max = device.max_mr_size,
      .message_size_max = port.max_msg_sz,
      .regions_max = device.max_mr,
      .requests_max = device.max_qp_wr,
      .entries_max = device.max_cqe,
      .pairs_max = device.max_qp,
      .reads_out = static_cast<uint8_t>(std::clamp<int>(device.max_qp_init_rd_atom, 0, kReadsMax)),
      .reads_in = static_cast<uint8_t>(std::clamp<int>(device.max_qp_rd_atom, 0, kReadsMax)),
      .odp = settings_.odp && verbs_.offers_odp(context_),
  };
  return Status();
}

Result<GidEntry> RdmaRail::query_gid(LinkLayer link_layer) {
  std::vector<ibv_gid_entry> entries(kGidsMax);
  const ssize_t count = verbs_.query_gid_table(context_, entries.data(), entries.size());
  if (count < 0) return error(Code::kIo, "ibv_query_gid_table", static_cast<int>(-count));
  std::vector<GidEntry> table;
  for (ssize_t i = 0; i < count; ++i) {
    const ibv_gid_entry& entry = entries[static_cast<size_t>(i)];
    if (entry.port_num != port_) continue;
    GidEntry& one = table.emplace_back();
    one.index = entry.gid_index;
    one.kind = gid_kind(entry.gid_type);
    one.is_bond = entry.ndev_ifindex != 0 && is_bond(entry.ndev_ifindex);
    std::memcpy(one.gid.data(), entry.gid.raw, one.gid.size());
  }
  if (const auto gid = choose_gid(table, settings_.gid_index)) return *gid;
  std::string known;
  for (const GidEntry& entry : table) {
    known += (known.empty() ? "" : ", ") + std::to_string(entry.index) + " " + to_string(entry.gid);
  }
  const std::string wanted = settings_.gid_index < 0
                                 ? "no GID"
                                 : "no GID at gid_index " + std::to_string(settings_.gid_index);
  const char* remedy = link_layer == LinkLayer::kEthernet
                           ? "give the network interface an IP address and bring it up"
                           : "is a subnet manager running?";
  return Status(Code::kUnavailable,
                "RDMA: " + name_ + ": port " + std::to_string(port_) + " has " + wanted +
                    " (there are: " + (known.empty() ? "none" : known) + "); " + remedy);
}

Result<RailRoute> RdmaRail::query_route() {
  ibv_port_attr port{};
  if (const int rc = verbs_.query_port(context_, port_, &port); rc != 0) {
    return error(Code::kIo, "ibv_query_port " + std::to_string(port_), rc);
  }
  const bool is_ethernet = port.link_layer == IBV_LINK_LAYER_ETHERNET;
  const LinkLayer link_layer = is_ethernet ? LinkLayer::kEthernet : LinkLayer::kInfiniband;
  const Result<GidEntry> gid = query_gid(link_layer);
  const bool is_up = port.state == IBV_PORT_ACTIVE && !is_fatal_;
  uint16_t mtu = mtu_bytes(port.active_mtu);
  if (settings_.mtu != 0) mtu = std::min(mtu, static_cast<uint16_t>(settings_.mtu));

  const std::lock_guard lock(mutex_);
  is_up_ = is_up && gid.ok();
  speed_mbps_ = lane_speed_mbps(port.active_speed) * lane_count(port.active_width);
  if (gid.ok()) {
    route_ = RailRoute{{gid.value().gid, port.lid, link_layer, mtu, limits_.reads_in},
                       port_,
                       static_cast<uint8_t>(gid.value().index),
                       is_ethernet || (port.flags & IBV_QPF_GRH_REQUIRED) != 0};
  }
  if (is_fatal_) {
    return Status(Code::kUnavailable,
                  "RDMA: " + name_ + ": the device failed; see the kernel's log, then start again");
  }
  if (port.state != IBV_PORT_ACTIVE) {
    return Status(Code::kUnavailable, "RDMA: " + name_ + ": port " + std::to_string(port_) +
                                          " is down (state " + std::to_string(port.state) +
                                          "); check the cable, `ip link`, `rdma link`");
  }
  if (!gid.ok()) return gid.status();
  return route_;
}

Result<RailRoute> RdmaRail::route() {
  return query_route();
}

RailDescriptor RdmaRail::describe() const {
  const std::lock_guard lock(mutex_);
  return {name_, route_.address, speed_mbps_, is_up_};
}

uint64_t RdmaRail::add_client(std::weak_ptr<Client> client) {
  const std::lock_guard lock(mutex_);
  clients_.emplace(next_client_id_, std::move(client));
  return next_client_id_++;
}

void RdmaRail::remove_client(uint64_t id) {
  const std::lock_guard lock(mutex_);
  clients_.erase(id);
}

std::vector<std::shared_ptr<RdmaRail::Client>> RdmaRail::clients() {
  std::vector<std::shared_ptr<Client>> all;
  const std::lock_guard lock(mutex_);
  for (const auto& [id, client] : clients_) {
    if (auto living = client.lock()) all.push_back(std::move(living));
  }
  return all;
}

void RdmaRail::take_completion_events() {
  ibv_cq* queue = nullptr;
  void* id = nullptr;
  // The channel stays readable while there are more.
  for (int i = 0; i < kEventsAtOnce && verbs_.get_cq_event(channel_, &queue, &id) == 0; ++i) {
    // At once: whoever destroys the queue waits for it. After that only the id may be used.
    verbs_.ack_cq_events(queue, 1);
    std::shared_ptr<Client> client;
    {
      const std::lock_guard lock(mutex_);
      const auto found = clients_.find(reinterpret_cast<uintptr_t>(id));
      if (found != clients_.end()) client = found->second.lock();
    }
    if (client != nullptr) client->on_completions();
  }
}

void RdmaRail::take_device_events() {
  ibv_async_event event{};
  while (verbs_.get_async_event(context_, &event) == 0) {
    verbs_.ack_async_event(&event);
    on_device_event(event);
  }
}

void RdmaRail::on_device_event(const ibv_async_event& event) {
  Gid before{};
  uint16_t lid_before = 0;
  {
    const std::lock_guard lock(mutex_);
    before = route_.address.gid;
    lid_before = route_.address.lid;
  }
  switch (event.event_type) {
    case IBV_EVENT_DEVICE_FATAL:
      is_fatal_ = true;
      [[fallthrough]];
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_GID_CHANGE:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
      break;
    default:
      return;  // About one queue pair: its completions tell.
  }
  const Result<RailRoute> now = query_route();
  if (!now.ok()) return lose_clients(now.status());
  if (now.value().address.gid != before || now.value().address.lid != lid_before) {
    lose_clients(Status(Code::kUnavailable, "RDMA: " + name_ + ": its address changed to " +
                                                to_string(now.value().address.gid) +
                                                "; it is connected anew"));
  }
}

void RdmaRail::lose_clients(const Status& status) {
  for (const auto& client : clients()) client->on_rail_lost(status);
}

}  // namespace hicache
