// A machine that may lead the cluster: the real directory behind its real desk.
#pragma once

#include <map>
#include <memory>

#include "directory/directory_desk.h"
#include "sim/sim_world.h"

namespace hicache::testing {

class SimMaster {
 public:
  /// Whether a process of this incarnation is at an address; asked after a while.
  using IsAlive = std::function<bool(const Host& from, const std::string& address, uint64_t life)>;

  SimMaster(World& world, std::string name, const Directory::Options& options, IsAlive is_alive)
      : world_(world),
        options_(options),
        is_alive_(std::move(is_alive)),
        host_(world.add_host(std::move(name))) {}

  Host& host() { return host_; }
  /// A new process, which knows nothing; epoch 0: it does not lead.
  void start(uint64_t epoch);
  void stop();
  void lead(uint64_t epoch);
  /// Another leads, as this one has heard.
  bool is_outdated() const { return is_outdated_; }
  bool is_leading() const { return directory_ && directory_->epoch() != 0; }
  Directory& directory() { return *directory_; }
  /// Carries out what is due.
  void advance();

 private:
  void accept(const StreamRef& stream);
  void take(SessionId session, const Message& message);
  void probe(const Directory::Effect& effect);
  void carry_out(const Directory::Effect& effect);
  uint64_t now_ms() const { return world_.local_ms(host_); }

  World& world_;
  const Directory::Options options_;
  const IsAlive is_alive_;
  Host& host_;
  std::unique_ptr<Directory> directory_;
  std::unique_ptr<DirectoryDesk> desk_;
  std::map<SessionId, StreamRef> streams_;
  SessionId last_session_ = 0;
  uint64_t due_ms_ = UINT64_MAX;  // For which an event was made.
  bool is_outdated_ = false;
};

}  // namespace hicache::testing
