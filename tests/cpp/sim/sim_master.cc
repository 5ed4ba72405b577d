#include "sim/sim_master.h"

#include "net/frame.h"
#include "sim/sim_line.h"

namespace hicache::testing {

void SimMaster::start(uint64_t epoch) {
  world_.start_host(host_);
  directory_ = std::make_unique<Directory>(options_);
  desk_ = std::make_unique<DirectoryDesk>(*directory_);
  streams_.clear();
  due_ms_ = UINT64_MAX;
  world_.listen(host_, [this](const StreamRef& stream) { accept(stream); });
  lead(epoch);
}

void SimMaster::stop() {
  world_.note(&host_, "ends");
  world_.stop_host(host_);
  streams_.clear();
}

void SimMaster::lead(uint64_t epoch) {
  world_.note(&host_, "leads with epoch " + std::to_string(epoch));
  is_outdated_ = false;
  directory_->lead(epoch);
  advance();
}

void SimMaster::accept(const StreamRef& stream) {
  const SessionId session = ++last_session_;
  streams_.emplace(session, stream);
  stream->listen(
      1, [this, session](const Message& message) { take(session, message); },
      [this, session] {
        streams_.erase(session);
        directory_->disconnected(session, now_ms());
        advance();
      });
}

void SimMaster::take(SessionId session, const Message& message) {
  std::vector<uint8_t> frame;
  begin_frame(frame);
  const auto op = static_cast<DirectoryOp>(message.op);
  if (!desk_->answer(op, message.payload, session, now_ms(), frame)) {
    return world_.fail("the directory takes a request for hostile");
  }
  streams_.at(session)->send(1, message_of(message.op | kDirectoryReplyBit, message.id, frame));
  advance();
}

void SimMaster::advance() {
  if (const std::string fault = directory_->check_invariants(); !fault.empty()) world_.fail(fault);
  uint64_t next_ms = directory_->advance(now_ms());
  for (auto effects = directory_->take_effects(); !effects.empty();
       effects = directory_->take_effects()) {
    for (const Directory::Effect& effect : effects) carry_out(effect);
    next_ms = std::min(next_ms, directory_->advance(now_ms()));
  }
  if (next_ms == UINT64_MAX || next_ms >= due_ms_) return;
  due_ms_ = next_ms;
  world_.at_local_ms(host_, std::max(next_ms, now_ms() + 1), [this] {
    due_ms_ = UINT64_MAX;
    advance();
  });
}

void SimMaster::carry_out(const Directory::Effect& effect) {
  if (effect.kind == Directory::EffectKind::kProbe) return probe(effect);
  if (effect.kind == Directory::EffectKind::kHeardOfNewer) is_outdated_ = true;
  const auto stream = streams_.find(effect.session);
  if (stream == streams_.end()) return;
  if (effect.kind == Directory::EffectKind::kCloseSession) {
    stream->second->close(1);
    streams_.erase(stream);
    directory_->disconnected(effect.session, now_ms());
  } else if (effect.kind == Directory::EffectKind::kSendOrders) {
    std::vector<uint8_t> frame;
    begin_frame(frame);
    WireWriter writer(frame);
    encode(writer, directory_->orders_of(effect.node));
    const auto op = static_cast<uint16_t>(DirectoryOp::kHeartbeat);
    stream->second->send(1, message_of(op | kDirectoryReplyBit, 0, frame));
  }
}

void SimMaster::probe(const Directory::Effect& effect) {
  world_.after_us(host_, world_.random().between(200, 2000), [this, effect] {
    const bool is_alive = is_alive_(host_, effect.address, effect.incarnation);
    const uint64_t later_us = is_alive ? 0 : world_.random().size_up_to(200'000);
    world_.after_us(host_, later_us, [this, effect, is_alive] {
      directory_->probe_result(effect.node, effect.probe, is_alive, now_ms());
      advance();
    });
  });
}

}  // namespace hicache::testing
