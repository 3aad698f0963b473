#include <catch2/catch.hpp>

#include <string>

#include "introspect/core/sha256.h"

using introspect::Sha256;
using introspect::sha256_hex;

TEST_CASE("sha256 gives the digests of FIPS 180-4's examples") {
  CHECK(sha256_hex("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  CHECK(sha256_hex("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  CHECK(sha256_hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
        "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  CHECK(sha256_hex(std::string(1'000'000, 'a')) ==
        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST_CASE("sha256 does not depend on how the message is cut") {
  std::string message;
  for (int i = 0; i < 300; ++i) message += static_cast<char>(i * 37);
  for (size_t first = 0; first <= 130; ++first) {
    Sha256 hash;
    hash.update(message.substr(0, first));
    (void)hash.hex();  // asking early changes nothing
    CHECK(hash.update(message.substr(first)).hex() == sha256_hex(message));
  }
}
