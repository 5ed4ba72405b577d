// Opening SSD logs on real folders: what is made, what is refused, and that refusing changes
// nothing.
#include "tier/ssd_directory.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "direct_file.h"
#include "io/mapped_memory.h"
#include "support.h"

namespace hicache {
namespace {

constexpr uint64_t kRegionSize = 256 * kKiB;

class SsdDirectoryTest : public ::testing::Test {
 protected:
  SsdDirectory::Options options() const {
    return {folder_.path() + "/ssd", kSuperblockSize + 8 * kRegionSize, kRegionSize};
  }
  std::string file() const { return options().path + "/" + kSsdFileName; }

  static std::unique_ptr<SsdDirectory> open(const SsdDirectory::Options& options) {
    auto opened = SsdDirectory::open(options);
    EXPECT_TRUE(opened.ok()) << opened.status().message();
    return opened.ok() ? std::move(opened.value()) : nullptr;
  }

  std::vector<char> content() const {
    if (!std::filesystem::is_regular_file(file())) return {};
    std::ifstream stream(file(), std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), {}};
  }
  void put(const std::vector<char>& bytes) const {
    std::filesystem::create_directory(options().path);
    std::ofstream(file(), std::ios::binary)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  /// Is refused with this code, the path and the remedy, and everything is as it was.
  void expect_refused(Code code, const std::string& why) const {
    const std::vector<char> before = content();
    const auto opened = SsdDirectory::open(options());
    ASSERT_FALSE(opened.ok());
    const std::string& message = opened.status().message();
    EXPECT_EQ(opened.status().code(), code) << message;
    EXPECT_NE(message.find(file()), std::string::npos) << message;
    EXPECT_NE(message.find(why), std::string::npos) << message;
    EXPECT_NE(message.find("move it away or choose another folder"), std::string::npos) << message;
    EXPECT_EQ(content(), before);
  }
  /// The first bytes of a file that is in order.
  std::vector<char> sound_file() {
    {
      EXPECT_NE(open(options()), nullptr);
    }
    std::vector<char> bytes = content();
    std::filesystem::remove_all(options().path);
    return bytes;
  }

  testing::TestFolder folder_;
};

TEST_F(SsdDirectoryTest, MakesFolderAndFileForTheirOwnerAlone) {
  const auto directory = open(options());
  ASSERT_NE(directory, nullptr);
  struct stat stat{};
  ASSERT_EQ(::stat(options().path.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 07777, 0700U);
  ASSERT_EQ(::stat(file().c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 07777, 0600U);
  EXPECT_EQ(static_cast<uint64_t>(stat.st_size), kSuperblockSize);
  EXPECT_EQ(directory->path(), file());
  const int flags = fcntl(directory->fd(), F_GETFL);
  EXPECT_EQ(flags & O_ACCMODE, O_RDWR);
  EXPECT_NE(flags & O_DIRECT, 0);
  EXPECT_NE(fcntl(directory->fd(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(SsdDirectoryTest, OpenedAgainItIsTheSameLogWithItsOwnRegions) {
  LogId id;
  {
    const auto directory = open(options());
    id = directory->log_id();
    EXPECT_NE(id, LogId{});
    ASSERT_EQ(ftruncate(directory->fd(), kSuperblockSize + 3 * kRegionSize + 4096), 0);
  }
  SsdDirectory::Options other = options();
  other.region_size_bytes = 2 * kRegionSize;
  const auto directory = open(other);
  EXPECT_EQ(directory->log_id(), id);
  EXPECT_EQ(directory->region_size_bytes(), kRegionSize);
  EXPECT_EQ(directory->region_count(), 3U);
  EXPECT_EQ(directory->region_count_max(), 8U);
  EXPECT_EQ(directory->region_offset(0), kSuperblockSize);
  EXPECT_EQ(directory->region_offset(2), kSuperblockSize + 2 * kRegionSize);
}

TEST_F(SsdDirectoryTest, LogsHaveDifferentNames) {
  std::set<LogId> ids;
  for (int i = 0; i < 4; ++i) {
    ids.insert(open({options().path + std::to_string(i), kGiB, kRegionSize})->log_id());
  }
  EXPECT_EQ(ids.size(), 4U);
}

TEST_F(SsdDirectoryTest, RegionCountsAreOfWholeRegionsAndAtLeastThreeAreAllowed) {
  SsdDirectory::Options small = options();
  for (const auto& [size, count] :
       std::vector<std::pair<uint64_t, uint32_t>>{{0, 3},
                                                  {kRegionSize, 3},
                                                  {kSuperblockSize + 4 * kRegionSize - 1, 3},
                                                  {kSuperblockSize + 4 * kRegionSize, 4},
                                                  {UINT64_MAX, UINT32_MAX}}) {
    small.size_limit_bytes = size;
    EXPECT_EQ(open(small)->region_count_max(), count) << size;
  }
  const auto directory = open(small);
  EXPECT_EQ(directory->region_count(), 0U);
  ASSERT_EQ(ftruncate(directory->fd(), kSuperblockSize + kRegionSize - 1), 0);
  EXPECT_EQ(directory->region_count(), 0U);
  ASSERT_EQ(ftruncate(directory->fd(), 0), 0);
  EXPECT_EQ(directory->region_count(), 0U);
}

TEST_F(SsdDirectoryTest, ASecondOpenIsBusyUntilTheFirstOneEnds) {
  auto first = open(options());
  const Result<Fd> reader = first->open_for_readers();
  ASSERT_TRUE(reader.ok());
  const auto second = SsdDirectory::open(options());
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.status().code(), Code::kBusy);
  EXPECT_NE(second.status().message().find(file()), std::string::npos);
  first.reset();
  EXPECT_NE(open(options()), nullptr);  // Readers hold nothing up.
}

TEST_F(SsdDirectoryTest, OfManyThatRaceForANewFolderOneWins) {
  std::array<std::unique_ptr<SsdDirectory>, 8> opened;  // All that won stay open.
  std::vector<std::thread> threads;
  for (auto& directory : opened) {
    threads.emplace_back([this, &directory] {
      auto result = SsdDirectory::open(options());
      EXPECT_TRUE(result.ok() || result.status().code() == Code::kBusy)
          << result.status().message();
      if (result.ok()) directory = std::move(result.value());
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto won = std::ranges::count_if(opened, [](const auto& one) { return one != nullptr; });
  EXPECT_EQ(won, 1);
}

TEST_F(SsdDirectoryTest, WhatACrashLeftBeforeTheSuperblockCountsAsNew) {
  for (const size_t size : {size_t{0}, size_t{512}, size_t{kSectorSize}, size_t{kSuperblockSize}}) {
    put(std::vector<char>(size));
    const auto directory = open(options());
    ASSERT_NE(directory, nullptr) << size;
    EXPECT_EQ(content().size(), kSuperblockSize);
    EXPECT_EQ(std::string(content().data(), 8), "HICACHE1");
  }
}

TEST_F(SsdDirectoryTest, ZerosBeforeRegionsAreNotNew) {
  put(std::vector<char>(kSuperblockSize + 1));
  expect_refused(Code::kInvalidArgument, "HICACHE1");
}

TEST_F(SsdDirectoryTest, ForeignFilesAreRefused) {
  put({'h', 'e', 'l', 'l', 'o'});
  expect_refused(Code::kInvalidArgument, "HICACHE1");
  put(std::vector<char>(kMiB, 'x'));
  expect_refused(Code::kInvalidArgument, "HICACHE1");
}

TEST_F(SsdDirectoryTest, ATruncatedOrDamagedSuperblockIsRefused) {
  const std::vector<char> sound = sound_file();
  for (const size_t size : {size_t{20}, size_t{40}, size_t{52}}) {
    put({sound.begin(), sound.begin() + static_cast<ptrdiff_t>(size)});
    expect_refused(Code::kCorrupt, "superblock");
  }
  for (const size_t at : {17U, 33U, 50U, 2000U}) {
    std::vector<char> damaged = sound;
    damaged[at] ^= 4;
    put(damaged);
    expect_refused(Code::kCorrupt, "superblock");
  }
}

TEST_F(SsdDirectoryTest, AnotherVersionIsRefused) {
  std::vector<char> newer = sound_file();
  newer[8] = 2;
  put(newer);
  expect_refused(Code::kUnsupported, "version 2");
}

TEST_F(SsdDirectoryTest, SymbolicLinksAndOtherThingsAreRefused) {
  const std::string real = folder_.path() + "/real";
  std::ofstream(real).put('x');
  std::filesystem::create_directory(options().path);
  std::filesystem::create_symlink(real, file());
  expect_refused(Code::kInvalidArgument, "symbolic link");
  EXPECT_EQ(std::filesystem::file_size(real), 1U);
  std::filesystem::remove(file());
  std::filesystem::create_directory(file());
  expect_refused(Code::kInvalidArgument, "not a regular file");
  std::filesystem::remove(file());
  ASSERT_EQ(mkfifo(file().c_str(), 0600), 0);
  expect_refused(Code::kInvalidArgument, "not a regular file");
}

TEST_F(SsdDirectoryTest, AFileOfAnotherUserIsRefused) {
  put({});
  if (chown(file().c_str(), 12345, 12345) != 0) GTEST_SKIP() << "not root: cannot give files away";
  expect_refused(Code::kInvalidArgument, "belongs to user 12345");
}

TEST_F(SsdDirectoryTest, FoldersThatCannotBeWrittenAreAnErrorThatNamesThem) {
  SsdDirectory::Options missing = options();
  missing.path = folder_.path() + "/missing/ssd";
  EXPECT_EQ(SsdDirectory::open(missing).status().code(), Code::kIo);
  EXPECT_NE(SsdDirectory::open(missing).status().message().find(missing.path), std::string::npos);

  const testing::PrivateMount read_only("tmpfs", MS_RDONLY, "size=1m");
  SsdDirectory::Options given = options();
  if (read_only.valid()) {
    given.path = read_only.path();
  } else {
    given.path = folder_.path() + "/read-only";
    ASSERT_EQ(mkdir(given.path.c_str(), 0500), 0);
  }
  const auto opened = SsdDirectory::open(given);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), Code::kIo);
  EXPECT_NE(opened.status().message().find(given.path), std::string::npos);
}

TEST_F(SsdDirectoryTest, AFileSystemWithoutDirectIoIsUnsupported) {
  const testing::PrivateMount memory("ramfs", 0, "");
  if (!memory.valid()) GTEST_SKIP() << "mounting ramfs: " << std::strerror(errno);
  const auto opened = SsdDirectory::open({memory.path(), kGiB, kRegionSize});
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), Code::kUnsupported) << opened.status().message();
  EXPECT_NE(opened.status().message().find("O_DIRECT"), std::string::npos);
}

TEST_F(SsdDirectoryTest, AFullFileSystemIsNoSpaceAndUsableOnceThereIsSome) {
  const testing::PrivateMount small("tmpfs", 0, "size=96k");
  if (!small.valid()) GTEST_SKIP() << "mounting a small file system: " << std::strerror(errno);
  const std::string filler = small.path() + "/filler";
  std::ofstream(filler) << std::string(64 * kKiB, 'x');
  const SsdDirectory::Options given{small.path(), kGiB, kRegionSize};
  const auto opened = SsdDirectory::open(given);
  ASSERT_FALSE(opened.ok());
  EXPECT_EQ(opened.status().code(), Code::kNoSpace) << opened.status().message();
  EXPECT_NE(opened.status().message().find(given.path), std::string::npos);
  std::filesystem::remove(filler);
  EXPECT_NE(open(given), nullptr);
}

TEST_F(SsdDirectoryTest, RegionSizesThatNoLogHasAreInvalid) {
  for (const uint64_t size :
       {uint64_t{0}, kRegionSizeMin - kSectorSize, kRegionSizeMin + 512, kRegionSizeMax + kMiB}) {
    SsdDirectory::Options bad = options();
    bad.region_size_bytes = size;
    EXPECT_EQ(SsdDirectory::open(bad).status().code(), Code::kInvalidArgument) << size;
  }
  EXPECT_FALSE(std::filesystem::exists(options().path));
}

TEST_F(SsdDirectoryTest, ReadersGetTheSameFileWhateverTheNamePointsTo) {
  const auto directory = open(options());
  std::filesystem::rename(file(), file() + ".old");
  put(std::vector<char>(kMiB, 'x'));
  const Result<Fd> reader = directory->open_for_readers();
  ASSERT_TRUE(reader.ok()) << reader.status().message();
  const int flags = fcntl(reader.value().get(), F_GETFL);
  EXPECT_EQ(flags & O_ACCMODE, O_RDONLY);
  EXPECT_NE(flags & O_DIRECT, 0);
  MappedMemory memory = MappedMemory::make(kSectorSize);
  ASSERT_EQ(pread(reader.value().get(), memory.address(), kSectorSize, 0), ssize_t(kSectorSize));
  const auto decoded = decode_superblock(Sector(memory.span().first<kSectorSize>()));
  ASSERT_TRUE(decoded.ok());
  EXPECT_EQ(decoded.value().log_id, directory->log_id());
  EXPECT_FALSE(directory->is_gone());
}

TEST_F(SsdDirectoryTest, IsGoneOnceItsFolderWasRemoved) {
  const auto directory = open(options());
  EXPECT_FALSE(directory->is_gone());
  std::filesystem::remove_all(options().path);
  EXPECT_TRUE(directory->is_gone());
  EXPECT_TRUE(directory->open_for_readers().ok());
  EXPECT_NE(open(options()), nullptr);  // A new one may begin in its place.
}

TEST_F(SsdDirectoryTest, TellsWhatUsersMayStillWrite) {
  const testing::PrivateMount small("tmpfs", 0, "size=1m");
  if (!small.valid()) GTEST_SKIP() << "mounting a small file system: " << std::strerror(errno);
  const auto directory = open({small.path(), kGiB, kRegionSize});
  ASSERT_NE(directory, nullptr);
  EXPECT_LE(directory->file_system_free_bytes(), kMiB - kSuperblockSize);
  const uint64_t before = directory->file_system_free_bytes();
  ASSERT_EQ(fallocate(directory->fd(), 0, 0, kSuperblockSize + kRegionSize), 0);
  EXPECT_EQ(directory->file_system_free_bytes(), before - kRegionSize);
}

}  // namespace
}  // namespace hicache
