#include "store/ssd_watch.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <sstream>

#include "io/fd.h"

namespace hicache {
namespace {

constexpr auto kInterval = std::chrono::seconds(2);
constexpr auto kEndPatience = std::chrono::seconds(1);  // Then a disk hangs.
constexpr size_t kNamesMax = 65536;
constexpr size_t kLineSizeMax = 8192;
constexpr size_t kNamesSizeMax = 16 * kMiB;
constexpr const char* kNamesFile = "namespaces.tsv";

/// Anybody may have put anything there: what is no file, such as a pipe that nobody writes to, must
/// not be waited for.
Fd open_names(const SsdDirectory& directory, int flags) {
  const auto path = std::filesystem::path(directory.path()).parent_path() / kNamesFile;
  Fd file(::open(path.c_str(), flags | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0600));
  struct stat status{};
  if (file.valid() && (::fstat(file.get(), &status) != 0 || !S_ISREG(status.st_mode))) return Fd();
  return file;
}

}  // namespace

SsdWatch::SsdWatch(std::vector<std::shared_ptr<const SsdDirectory>> directories,
                   std::function<void()> on_change)
    : shared_(std::make_shared<Shared>()) {
  shared_->states.assign(directories.size(), State{UINT64_MAX, false});
  for (const auto& directory : directories) read_names(*directory, shared_->names);
  shared_->directories = std::move(directories);
  shared_->on_change = std::move(on_change);
  thread_ = std::thread([shared = shared_] { run(*shared); });
}

SsdWatch::~SsdWatch() {
  std::unique_lock lock(shared_->mutex);
  shared_->closing = true;
  shared_->changed.notify_all();
  const bool is_stuck =
      !shared_->changed.wait_for(lock, kEndPatience, [this] { return shared_->ended; });
  lock.unlock();
  if (is_stuck) {
    thread_.detach();
  } else {
    thread_.join();
  }
}

std::vector<SsdWatch::State> SsdWatch::states() const {
  std::lock_guard lock(shared_->mutex);
  return shared_->states;
}

std::string SsdWatch::description_of(const NamespaceDigest& digest) const {
  std::lock_guard lock(shared_->mutex);
  const auto found = shared_->names.find(hex(digest));
  return found == shared_->names.end() ? "" : found->second;
}

void SsdWatch::remember(const NamespaceDigest& digest, const std::string& description) {
  std::string text = description;
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';  // A line is a line.
  }
  std::lock_guard lock(shared_->mutex);
  const auto [found, is_new] = shared_->names.try_emplace(hex(digest), text);
  if (!is_new || shared_->names.size() > kNamesMax) return;
  shared_->unwritten.push_back(found->first + "\t" + text + "\n");
  shared_->changed.notify_all();
}

void SsdWatch::run(Shared& shared) {
  for (;;) {
    look(shared);
    write_names(shared);
    std::unique_lock lock(shared.mutex);
    if (!shared.closing) shared.on_change();
    shared.changed.wait_for(lock, kInterval,
                            [&shared] { return shared.closing || !shared.unwritten.empty(); });
    if (!shared.closing || !shared.unwritten.empty()) continue;
    shared.ended = true;
    shared.changed.notify_all();
    return;
  }
}

void SsdWatch::look(Shared& shared) {
  std::vector<State> states;
  for (const auto& directory : shared.directories) {
    states.push_back({directory->file_system_free_bytes(), directory->is_gone()});
  }
  std::lock_guard lock(shared.mutex);
  shared.states = std::move(states);
}

void SsdWatch::write_names(Shared& shared) {
  std::string lines;
  {
    std::lock_guard lock(shared.mutex);
    for (const std::string& line : std::exchange(shared.unwritten, {})) lines += line;
  }
  if (lines.empty()) return;
  for (const auto& directory : shared.directories) {
    // It only names what is there: a disk that does not take it changes nothing.
    const Fd file = open_names(*directory, O_WRONLY | O_APPEND | O_CREAT);
    if (file.valid()) (void)!::write(file.get(), lines.data(), lines.size());
  }
}

std::string SsdWatch::hex(const NamespaceDigest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : digest.bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

void SsdWatch::read_names(const SsdDirectory& directory,
                          std::map<std::string, std::string>& names) {
  const Fd file = open_names(directory, O_RDONLY);
  if (!file.valid()) return;
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) return;
  std::string text(std::min(static_cast<size_t>(status.st_size), kNamesSizeMax), '\0');
  size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t size = ::read(file.get(), text.data() + filled, text.size() - filled);
    if (size <= 0) break;
    filled += static_cast<size_t>(size);
  }
  text.resize(filled);
  std::istringstream lines(text);
  std::string line;
  for (size_t count = 0; count < kNamesMax && std::getline(lines, line); ++count) {
    const size_t tab = line.find('\t');
    if (tab != 2 * kKeySize || line.size() > kLineSizeMax) continue;
    names.try_emplace(line.substr(0, tab), line.substr(tab + 1));
  }
}

}  // namespace hicache
