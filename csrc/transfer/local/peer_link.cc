#include "transfer/local/peer_link.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>
#include <vector>

#include "io/fork_guard.h"
#include "io/unix_socket.h"
#include "net/secure_channel.h"
#include "transfer/checksum_copy.h"
#include "transfer/local/local_server.h"

namespace hicache {
namespace {

/// The alignment that streaming stores want of their target.
constexpr uintptr_t kStreamAlignment = 32;

uint8_t* memory_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(address));
}

void copy_bytes(uint8_t* target, const uint8_t* source, uint64_t size, bool is_streaming) {
  if (!is_streaming) {
    std::memcpy(target, source, size);
    return;
  }
  const uint64_t misaligned = reinterpret_cast<uintptr_t>(target) % kStreamAlignment;
  const uint64_t head = std::min(size, (kStreamAlignment - misaligned) % kStreamAlignment);
  std::memcpy(target, source, head);
  plain_copy(target + head, source + head, size - head, Store::kStreaming);
  fence_stores();
}

/// One way of process_vm_*: how much of the piece went through, or errno.
ssize_t move_some(pid_t pid, Direction direction, uint8_t* local, uint64_t remote, uint64_t size) {
  const iovec here{local, size};
  const iovec there{memory_at(remote), size};
  return direction == Direction::kRead ? process_vm_readv(pid, &here, 1, &there, 1, 0)
                                       : process_vm_writev(pid, &here, 1, &there, 1, 0);
}

class DeathWatch : public IoLoop::Source {
 public:
  explicit DeathWatch(std::weak_ptr<PeerLink> link) : link_(std::move(link)) {}
  void on_events(uint32_t) override {
    if (const auto link = link_.lock()) link->on_events(EPOLLHUP);
  }
  uint64_t on_time(uint64_t) override { return IoLoop::kNever; }

 private:
  const std::weak_ptr<PeerLink> link_;
};

}  // namespace

// ---- Connecting

Result<std::shared_ptr<PeerLink>> PeerLink::connect(uint64_t peer_epoch, const Secret& secret,
                                                    IoLoop& loop, Deadline deadline) {
  Result<Fd> socket = unix_connect(local_socket_name(peer_epoch));
  if (!socket.ok()) {
    return Status(Code::kUnavailable,
                  "the peer is not on this machine, or in another network "
                  "namespace: " +
                      socket.status().message());
  }
  keep_from_children(socket.value());
  const Result<PeerIdentity> peer = peer_identity(socket.value());
  if (!peer.ok()) return peer.status();
  if (peer.value().uid != geteuid()) {
    return Status(Code::kUnavailable, "the local peer belongs to user " +
                                          std::to_string(peer.value().uid) +
                                          " and this process to user " + std::to_string(geteuid()) +
                                          "; memory is shared within one user only");
  }
  std::shared_ptr<PeerLink> link(
      std::unique_ptr<PeerLink>(new PeerLink(std::move(socket.value()), peer.value().pid, loop)));
  HICACHE_RETURN_IF_ERROR(link->greet(peer_epoch, secret, deadline));
  return link;
}

Status PeerLink::greet(uint64_t peer_epoch, const Secret& secret, Deadline deadline) {
  // Before the greeting: if the socket stands after it, this is the process that greeted.
  pidfd_ = open_pidfd(pid_);
  const Result<uint64_t> greeted =
      greet_server(socket_, secret, {Purpose::kLocal, peer_epoch}, deadline);
  if (!greeted.ok()) return greeted.status();
  HICACHE_RETURN_IF_ERROR(send_all(socket_, encode_local(LocalRequest{LocalOp::kHello}), deadline));
  std::array<uint8_t, kLocalAnswerSize> bytes;
  std::array<Fd, 2> passed;
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes, deadline, passed));
  const Result<LocalWelcome> welcome = decode_local_welcome(bytes);
  if (!welcome.ok()) return welcome.status();
  welcome_ = welcome.value();
  choose_reach(welcome_);
  return take_tables(welcome_, passed);
}

void PeerLink::choose_reach(const LocalWelcome& welcome) {
  name_ = "local -> process " + std::to_string(pid_);
  if (pid_ == getpid()) {
    reach_ = Reach::kSelf;
    return;
  }
  Nonce found{};
  // Without a process id it lives in a namespace that we do not see; without a pidfd we could not
  // tell the process from one that has its id after it.
  if (pid_ <= 0 || !pidfd_.valid()) return;
  const ssize_t got =
      move_some(pid_, Direction::kRead, found.data(), welcome.nonce_address, sizeof(found));
  if (got == static_cast<ssize_t>(sizeof(found)) && found == welcome.nonce) {
    reach_ = Reach::kProcessVm;
  }
}

Status PeerLink::take_tables(const LocalWelcome& welcome, std::span<Fd> passed) {
  if (reach_ == Reach::kSelf) {
    here_ = OwnBuffers::find_here(welcome);
    if (here_.owner == nullptr) return lost_status();
    live_ = here_.owner->live_words();
    slots_ = here_.requester->use_slots();
    return Status();
  }
  Result<MappedWindow> live =
      MappedWindow::map(passed[0], 0, kLiveWordsSize, MappedWindow::Access::kRead);
  if (!live.ok()) return live.status();
  Result<MappedWindow> slots =
      MappedWindow::map(passed[1], 0, kUseSlotsSize, MappedWindow::Access::kWrite);
  if (!slots.ok()) return slots.status();
  live_window_ = std::move(live.value());
  slots_window_ = std::move(slots.value());
  live_ = reinterpret_cast<const LiveWord*>(live_window_.address());
  slots_ = reinterpret_cast<UseSlot*>(slots_window_.address());
  return Status();
}

void PeerLink::start(std::weak_ptr<User> user) {
  user_ = std::move(user);
  // From the loop's thread, which is the one that removes them again.
  loop_.post([self = shared_from_this()] {
    if (!self->watch().ok()) self->lose();
  });
}

Status PeerLink::watch() {
  const Result<uint64_t> id = loop_.add(socket_.get(), EPOLLIN | EPOLLRDHUP, shared_from_this());
  if (!id.ok()) return id.status();
  id_ = id.value();
  if (!pidfd_.valid()) return Status();
  const Result<uint64_t> watch_id =
      loop_.add(pidfd_.get(), EPOLLIN, std::make_shared<DeathWatch>(weak_from_this()));
  if (watch_id.ok()) watch_id_ = watch_id.value();
  return watch_id.status();
}

void PeerLink::close() {
  loop_.post([self = shared_from_this()] {
    if (self->id_ != 0) self->loop_.remove(self->id_, self->socket_.get());
    if (self->watch_id_ != 0) self->loop_.remove(self->watch_id_, self->pidfd_.get());
    self->id_ = 0;
    self->watch_id_ = 0;
  });
}

// ---- What the peer has

std::shared_ptr<PeerLink::RemoteBuffer> PeerLink::find(BufferId buffer) {
  const std::lock_guard lock(mutex_);
  const auto [found, is_new] = buffers_.try_emplace(buffer, nullptr);
  if (is_new) {
    to_ask_.push_back(buffer);
    ask_more();
  }
  return found->second;
}

void PeerLink::update(const SegmentDescriptor& peer) {
  std::vector<std::shared_ptr<RemoteBuffer>> dropped;  // Unmapped without the lock.
  const std::lock_guard lock(mutex_);
  std::unordered_map<BufferId, bool> listed;
  for (const BufferDescriptor& buffer : peer.buffers) {
    listed.emplace(buffer.id, true);
    if (buffer.kind != MemoryKind::kHost) continue;
    const auto [found, is_new] = buffers_.try_emplace(buffer.id, nullptr);
    if (is_new) to_ask_.push_back(buffer.id);
  }
  std::erase_if(buffers_, [&](auto& entry) {
    if (entry.second == nullptr || listed.contains(entry.first)) return false;
    dropped.push_back(std::move(entry.second));
    return true;
  });
  ask_more();
}

/// Locked. Asks for as many as may be unanswered.
void PeerLink::ask_more() {
  while (!to_ask_.empty() && unanswered_ < kLocalUnansweredMax && !is_lost_) {
    const LocalRequest request{LocalOp::kWant, to_ask_.front()};
    // There is always room for it; if not, the peer is gone and the loop will see that.
    if (!send_all(socket_, encode_local(request), Deadline::after_ms(0)).ok()) return;
    to_ask_.pop_front();
    ++unanswered_;
  }
}

Status PeerLink::receive_range() {
  std::array<uint8_t, kLocalAnswerSize> bytes;
  Fd memfd;
  HICACHE_RETURN_IF_ERROR(receive_all(socket_, bytes, Deadline::after_ms(0), std::span(&memfd, 1)));
  const Result<LocalRange> range = decode_local_range(bytes);
  if (!range.ok()) return range.status();
  auto buffer = std::make_shared<RemoteBuffer>();
  buffer->range = range.value();
  if (buffer->range.is_mappable && memfd.valid() && reach_ != Reach::kSelf) {
    const auto access =
        buffer->range.remote_write ? MappedWindow::Access::kWrite : MappedWindow::Access::kRead;
    Result<MappedWindow> window =
        MappedWindow::map(memfd, buffer->range.offset, buffer->range.size, access);
    // What cannot be mapped is reached as other memory is, if that is permitted.
    if (window.ok()) buffer->window = std::move(window.value());
  }
  // The old one is unmapped without the lock, and when nobody copies any more.
  std::shared_ptr<RemoteBuffer> old;
  const std::lock_guard lock(mutex_);
  const auto found = buffers_.find(buffer->range.buffer);
  const bool is_asked = found != buffers_.end() && found->second == nullptr;
  if (!is_asked && buffer->range.is_there) {
    return Status(Code::kCorrupt, "a local peer tells of a buffer that nobody asked for");
  }
  if (found == buffers_.end()) return Status();
  old = std::exchange(found->second, std::move(buffer));
  if (is_asked && unanswered_ != 0) --unanswered_;
  ask_more();
  return Status();
}

void PeerLink::on_events(uint32_t events) {
  if (is_lost_) return;
  const bool is_over = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  if (is_over || !receive_range().ok()) return lose();
  if (const auto user = user_.lock()) user->on_news();
}

uint64_t PeerLink::on_time(uint64_t now_ns) {
  const auto user = user_.lock();
  return user == nullptr ? IoLoop::kNever : user->on_link_time(now_ns);
}

void PeerLink::lose() {
  is_lost_ = true;
  close();
  if (const auto user = user_.lock()) user->on_lost();
}

Status PeerLink::gone_status(const LiveWord& word) const {
  if (is_lost_ || word.load() == kOwnerEnded) return lost_status();
  return Status(Code::kInvalidArgument, "the peer has de-registered the buffer");
}

Status PeerLink::lost_status() const {
  return Status(Code::kUnavailable,
                "the local peer, process " + std::to_string(pid_) + ", is gone; open it again");
}

uint64_t PeerLink::mapped_count() const {
  const std::lock_guard lock(mutex_);
  return static_cast<uint64_t>(std::ranges::count_if(buffers_, [](const auto& entry) {
    return entry.second != nullptr && entry.second->window.valid();
  }));
}

// ---- Copying

BufferUse::Outcome PeerLink::begin_use(BufferUse& use) const {
  BufferUse::Outcome begun;
  while ((begun = use.begin(slots_)) == BufferUse::Outcome::kCrowded) std::this_thread::yield();
  return begun;
}

Status PeerLink::copy(RemoteBuffer& buffer, Direction direction, uint8_t* local,
                      uint64_t remote_address, uint64_t size, bool is_streaming) {
  return use(buffer,
             [&] { return move(buffer, direction, local, remote_address, size, is_streaming); });
}

Status PeerLink::move(RemoteBuffer& buffer, Direction direction, uint8_t* local,
                      uint64_t remote_address, uint64_t size, bool is_streaming) {
  const bool is_read = direction == Direction::kRead;
  uint8_t* remote = memory_at(remote_address);
  if (buffer.window.valid()) {
    const uint64_t offset = remote_address - buffer.range.address;
    const auto access = is_read ? MappedWindow::Access::kRead : MappedWindow::Access::kWrite;
    HICACHE_RETURN_IF_ERROR(buffer.window.back(offset, size, access));
    remote = buffer.window.address() + offset;
  } else if (reach_ == Reach::kProcessVm) {
    return move_by_kernel(direction, local, remote_address, size);
  } else if (reach_ == Reach::kMapped) {
    return Status(Code::kUnavailable,
                  "the system does not permit to reach the memory of process " +
                      std::to_string(pid_) +
                      ", and it is not a sealed memfd that could be mapped; another transport can "
                      "(or see kernel.yama.ptrace_scope)");
  }
  copy_bytes(is_read ? local : remote, is_read ? remote : local, size, is_streaming);
  return Status();
}

Status PeerLink::move_by_kernel(Direction direction, uint8_t* local, uint64_t remote_address,
                                uint64_t size) {
  for (uint64_t done = 0; done < size;) {
    // The id is the peer's as long as the peer lives, which its socket and its pidfd tell.
    if (is_gone_now()) return lost_status();
    const ssize_t moved =
        move_some(pid_, direction, local + done, remote_address + done, size - done);
    if (moved > 0) {
      done += static_cast<uint64_t>(moved);
      continue;
    }
    const int error = moved == 0 ? EFAULT : errno;
    if (error == EINTR || error == EAGAIN) continue;
    if (error == ESRCH || is_gone_now()) return lost_status();
    const Status status = io_error(
        "copying memory of process " + std::to_string(pid_) + " (process_vm_readv/writev)", error);
    if (error == EFAULT) return Status(Code::kInvalidArgument, status.message());
    return error == EPERM ? Status(Code::kUnavailable, status.message()) : status;
  }
  return Status();
}

bool PeerLink::is_gone_now() const {
  pollfd watched[] = {{socket_.get(), POLLRDHUP, 0}, {pidfd_.get(), POLLIN, 0}};
  return is_lost_ || poll(watched, 2, 0) > 0;
}

Status PeerLink::probe() {
  pollfd watched[] = {{socket_.get(), POLLRDHUP, 0}, {pidfd_.get(), POLLIN, 0}};
  if (is_lost_ || poll(watched, pidfd_.valid() ? 2 : 1, 0) > 0) return lost_status();
  if (reach_ != Reach::kProcessVm) return Status();
  Nonce found{};
  HICACHE_RETURN_IF_ERROR(
      move_by_kernel(Direction::kRead, found.data(), welcome_.nonce_address, sizeof(found)));
  return found == welcome_.nonce ? Status() : lost_status();
}

}  // namespace hicache
