#include "store/peer_service.h"

#include <sys/epoll.h>

#include <algorithm>

#include "base/clock.h"

namespace hicache {
namespace {

/// Replies that wait for a peer: with more, nothing is read from it.
constexpr size_t kUnsentMax = 1 * kMiB;
constexpr int kFramesPerTurn = 32;
constexpr uint64_t kStallCheckMs = 250;

}  // namespace

PeerService::PeerService(Options options, Listening listening, int epoll, PeerPages& pages)
    : options_(std::move(options)),
      epoll_(epoll),
      desk_(options_.hello, pages),
      reception_({options_.secret, options_.hello.incarnation, options_.tls, options_.peers_max,
                  options_.on_notice},
                 std::move(listening), epoll) {}

void PeerService::close() {
  while (!peers_.empty()) forget(peers_.begin()->first);
  reception_.close();
}

void PeerService::advance(int fd, uint64_t now_ms) {
  if (peers_.contains(fd)) return turn_of(fd, now_ms);
  std::optional<Reception::Guest> guest = reception_.advance(fd, peers_.size());
  if (guest) welcome(std::move(*guest), now_ms);
}

uint64_t PeerService::advance(uint64_t now_ms) {
  for (const int fd : std::exchange(with_more_, {})) {
    const auto found = peers_.find(fd);
    if (found != peers_.end() && std::exchange(found->second.has_more, false)) {
      turn_of(fd, now_ms);
    }
  }
  const int greetings_ms = reception_.expire();
  uint64_t next_ms = greetings_ms < 0 ? UINT64_MAX : now_ms + static_cast<uint64_t>(greetings_ms);
  if (now_ms >= stalls_due_ms_) close_stalled(now_ms);
  if (!with_more_.empty()) return now_ms;
  const bool is_watched = std::any_of(peers_.begin(), peers_.end(), [](const auto& entry) {
    return !entry.second.guest.has_session || entry.second.blocked_ms != 0;
  });
  return is_watched ? std::min(next_ms, stalls_due_ms_) : next_ms;
}

void PeerService::close_stalled(uint64_t now_ms) {
  std::vector<int> stalled;
  for (const auto& [fd, peer] : peers_) {
    const uint64_t since_ms = peer.guest.has_session ? peer.blocked_ms : peer.since_ms;
    if (since_ms != 0 && now_ms >= since_ms + options_.stall_timeout_ms) stalled.push_back(fd);
  }
  refused_count_ += stalled.size();
  for (const int fd : stalled) forget(fd);
  stalls_due_ms_ = now_ms + kStallCheckMs;
}

void PeerService::welcome(Reception::Guest guest, uint64_t now_ms) {
  // Who only wanted to know whether this node lives has heard it.
  const bool is_probe = guest.purpose == Purpose::kControl;
  const bool is_welcome = guest.purpose == Purpose::kNode &&
                          guest.stream.is_tls() == (options_.tls != nullptr) &&
                          peers_.size() < options_.peers_max;
  if (!is_welcome) {
    if (!is_probe) ++refused_count_;
    reception_.guest_left();
    return;
  }
  const int fd = guest.stream.socket().get();
  peers_.emplace(fd, Peer{FramePipe(std::move(guest.stream), kPeerRequestSizeMax), now_ms});
  turn_of(fd, now_ms);
}

void PeerService::turn_of(int fd, uint64_t now_ms) {
  Peer& peer = peers_.at(fd);
  if (!serve(peer, now_ms)) return forget(fd);
  if (peer.has_more) with_more_.push_back(fd);
}

bool PeerService::serve(Peer& peer, uint64_t now_ms) {
  size_t received = 0;
  while (true) {
    if (!answer_some(peer, now_ms)) return false;
    if (peer.has_more) return send(peer, now_ms);
    if (peer.pipe.unsent_size() >= kUnsentMax) {
      if (!send(peer, now_ms)) return false;
      if (peer.pipe.unsent_size() >= kUnsentMax) return true;
      continue;  // There may be whole frames that were received before.
    }
    if (received >= kPeerRequestSizeMax) {
      peer.has_more = true;
      return send(peer, now_ms);
    }
    const Result<size_t> got = peer.pipe.receive();
    if (!got.ok()) return false;
    if (got.value() == 0) return send(peer, now_ms);
    received += got.value();
  }
}

bool PeerService::answer_some(Peer& peer, uint64_t now_ms) {
  for (int turn = 0; peer.pipe.unsent_size() < kUnsentMax; ++turn) {
    if (turn == kFramesPerTurn) {
      peer.has_more = true;
      return true;
    }
    const Result<FramePipe::Frame> frame = peer.pipe.next();
    if (frame.ok() && !frame.value().is_whole) return true;
    const bool is_sound =
        frame.ok() && answer(peer, frame.value().header, frame.value().payload, now_ms);
    if (!is_sound) {
      ++refused_count_;
      refuse(peer, frame.status());
      return false;
    }
    if (!frame_.empty()) peer.pipe.append(frame_);
  }
  return true;
}

bool PeerService::answer(Peer& peer, const FrameHeader& header, Payload payload, uint64_t now_ms) {
  const auto op = static_cast<NodeOp>(header.op);
  if (!desk_.answer(peer.guest, op, payload, now_ms, frame_)) return false;
  if (!frame_.empty()) seal_frame(frame_, header.op | kReplyBit, header.request_id);
  return true;
}

bool PeerService::send(Peer& peer, uint64_t now_ms) {
  const Result<size_t> sent = peer.pipe.flush();
  if (!sent.ok()) return false;
  const bool is_blocked = peer.pipe.unsent_size() != 0;
  if (!is_blocked) {
    peer.blocked_ms = 0;
  } else if (sent.value() != 0 || peer.blocked_ms == 0) {
    peer.blocked_ms = now_ms;
  }
  const bool reads = peer.pipe.unsent_size() < kUnsentMax;
  epoll_event event{};
  event.events = (reads ? EPOLLIN : 0U) | (is_blocked ? EPOLLOUT : 0U);
  event.data.fd = peer.pipe.fd();
  if (event.events == peer.events) return true;
  peer.events = event.events;
  return epoll_ctl(epoll_, EPOLL_CTL_MOD, event.data.fd, &event) == 0;
}

void PeerService::refuse(Peer& peer, const Status& why) {
  if (why.code() != Code::kUnsupported) return;
  peer.pipe.say_version();
  if (!options_.on_notice) return;
  options_.on_notice("a node at " + peer_host(peer.pipe.socket()) +
                     " was refused: " + why.message());
}

void PeerService::forget(int fd) {
  const auto found = peers_.find(fd);
  desk_.leave(found->second.guest);
  peers_.erase(found);  // Closing the descriptor also ends the watch.
  reception_.guest_left();
}

}  // namespace hicache
