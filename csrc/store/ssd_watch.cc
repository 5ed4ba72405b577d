#include "store/ssd_watch.h"

#include <chrono>
#include <filesystem>
#include <fstream>

namespace hicache {
namespace {

constexpr auto kInterval = std::chrono::seconds(2);
constexpr size_t kNamesMax = 65536;
constexpr size_t kLineSizeMax = 8192;
constexpr const char* kNamesFile = "namespaces.tsv";

std::filesystem::path names_file(const SsdDirectory& directory) {
  return std::filesystem::path(directory.path()).parent_path() / kNamesFile;
}

}  // namespace

SsdWatch::SsdWatch(std::vector<const SsdDirectory*> directories, std::function<void()> on_change)
    : directories_(std::move(directories)),
      on_change_(std::move(on_change)),
      states_(directories_.size(), State{UINT64_MAX, false}) {
  for (const SsdDirectory* directory : directories_) read_names(*directory, names_);
  thread_ = std::thread([this] { run(); });
}

SsdWatch::~SsdWatch() {
  {
    std::lock_guard lock(mutex_);
    closing_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::vector<SsdWatch::State> SsdWatch::states() const {
  std::lock_guard lock(mutex_);
  return states_;
}

std::string SsdWatch::description_of(const NamespaceDigest& digest) const {
  std::lock_guard lock(mutex_);
  const auto found = names_.find(hex(digest));
  return found == names_.end() ? "" : found->second;
}

void SsdWatch::remember(const NamespaceDigest& digest, const std::string& description) {
  std::string text = description;
  for (char& c : text) {
    if (static_cast<unsigned char>(c) < 0x20) c = ' ';  // A line is a line.
  }
  {
    std::lock_guard lock(mutex_);
    const auto [found, is_new] = names_.try_emplace(hex(digest), text);
    if (!is_new || names_.size() > kNamesMax) return;
    unwritten_.push_back(found->first + "\t" + text + "\n");
  }
  wake_.notify_all();
}

void SsdWatch::run() {
  for (;;) {
    look();
    write_names();
    on_change_();
    std::unique_lock lock(mutex_);
    wake_.wait_for(lock, kInterval, [this] { return closing_ || !unwritten_.empty(); });
    if (closing_ && unwritten_.empty()) return;
  }
}

void SsdWatch::look() {
  std::vector<State> states;
  for (const SsdDirectory* directory : directories_) {
    states.push_back({directory->file_system_free_bytes(), directory->is_gone()});
  }
  std::lock_guard lock(mutex_);
  states_ = std::move(states);
}

void SsdWatch::write_names() {
  std::vector<std::string> lines;
  {
    std::lock_guard lock(mutex_);
    lines = std::exchange(unwritten_, {});
  }
  for (const std::string& line : lines) {
    for (const SsdDirectory* directory : directories_) {
      // It only names what is there: a disk that does not take it changes nothing.
      std::ofstream(names_file(*directory), std::ios::app) << line;
    }
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
  std::ifstream file(names_file(directory));
  std::string line;
  for (size_t count = 0; count < kNamesMax && std::getline(file, line); ++count) {
    const size_t tab = line.find('\t');
    if (tab != 2 * kKeySize || line.size() > kLineSizeMax) continue;
    names.try_emplace(line.substr(0, tab), line.substr(tab + 1));
  }
}

}  // namespace hicache
