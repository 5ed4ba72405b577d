// Certificates for tests: an authority of its own, and certificates that it signed, as PEM files.
#pragma once

#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "net/stream.h"

namespace hicache::testing {

/// A folder for them, gone with this.
class CertificateFolder {
 public:
  CertificateFolder() {
    std::string name = std::filesystem::temp_directory_path() / "hicache-tls-XXXXXX";
    EXPECT_NE(mkdtemp(name.data()), nullptr);
    path_ = name;
  }
  ~CertificateFolder() { std::filesystem::remove_all(path_); }
  CertificateFolder(const CertificateFolder&) = delete;
  CertificateFolder& operator=(const CertificateFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

class Authority {
 public:
  /// Writes its certificate into `folder`.
  Authority(std::filesystem::path folder, const std::string& name)
      : folder_(std::move(folder)), key_(make_key()), certificate_(sign(key_, name, nullptr)) {
    path_ = write(name + ".authority.pem",
                  [this](FILE* file) { return PEM_write_X509(file, certificate_.get()); });
  }

  /// A certificate and key of a member, and this authority's own.
  TlsContext::Files member(const std::string& name) const {
    const Key key = make_key();
    const Certificate certificate = sign(key, name, this);
    return {
        write(name + ".pem", [&](FILE* file) { return PEM_write_X509(file, certificate.get()); }),
        write(name + ".key",
              [&](FILE* file) {
                return PEM_write_PrivateKey(file, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
              }),
        path_};
  }

 private:
  using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
  using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

  static Key make_key() { return {EVP_EC_gen("P-256"), &EVP_PKEY_free}; }

  /// Signed by `authority`, or by itself as one.
  static Certificate sign(const Key& key, const std::string& name, const Authority* authority) {
    Certificate certificate(X509_new(), &X509_free);
    X509* x509 = certificate.get();
    X509_set_version(x509, 2);
    static long serial = 1;
    ASN1_INTEGER_set(X509_get_serialNumber(x509), serial++);
    X509_gmtime_adj(X509_getm_notBefore(x509), -3600);
    X509_gmtime_adj(X509_getm_notAfter(x509), 3600);
    X509_set_pubkey(x509, key.get());
    X509_NAME_add_entry_by_txt(X509_get_subject_name(x509), "CN", MBSTRING_ASC,
                               reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
    X509_set_issuer_name(
        x509, X509_get_subject_name(authority == nullptr ? x509 : authority->certificate_.get()));
    if (authority == nullptr) {
      X509_EXTENSION* is_authority =
          X509V3_EXT_conf_nid(nullptr, nullptr, NID_basic_constraints, "critical,CA:TRUE");
      X509_add_ext(x509, is_authority, -1);
      X509_EXTENSION_free(is_authority);
    }
    X509_sign(x509, authority == nullptr ? key.get() : authority->key_.get(), EVP_sha256());
    return certificate;
  }

  template <typename Write>
  std::string write(const std::string& name, Write write_to) const {
    const std::string path = folder_ / name;
    const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "w"), &std::fclose);
    EXPECT_EQ(write_to(file.get()), 1);
    return path;
  }

  std::filesystem::path folder_;
  Key key_;
  Certificate certificate_;
  std::string path_;
};

}  // namespace hicache::testing
