// Stage `vouched`: a tag of suites 2 and 3 is verified when it is exactly one
// that the CPU has verified for this session; any other is held for the CPU.
#define TAG_KEY \
            meta.protocol : exact @name("protocol") @id(3); \
            meta.kind : exact @name("kind") @id(4); \
            meta.low_port : exact @name("low_port") @id(5); \
            meta.high_port : exact @name("high_port") @id(6); \
            hdr.tag.suite : exact @name("suite") @id(7); \
            hdr.tag.unid : exact @name("unid") @id(8); \
            hdr.tag.epoch : exact @name("epoch") @id(9); \
            hdr.tag.nonce : exact @name("nonce") @id(10); \
            hdr.tag.digest : exact @name("digest") @id(11); \
            meta.sealed_crc : exact @name("sealed_crc") @id(12);

control Vouched(inout headers_t hdr, inout metadata_t meta) {
    @id(0x01000301)
    action vouched() {
        meta.verified = 1;
    }

    @id(0x01000302)
    action not_vouched() { }

    @id(0x02000301)
    table vouched_v4 {
        key = {
            meta.low : exact @name("low") @id(1);
            meta.high : exact @name("high") @id(2);
            TAG_KEY
        }
        actions = { vouched; @defaultonly not_vouched; }
        const default_action = not_vouched();
        size = VOUCHED_SIZE;
        support_timeout = true;
    }

    @id(0x02000302)
    table vouched_v6 {
        key = {
            meta.low6 : exact @name("low") @id(1);
            meta.high6 : exact @name("high") @id(2);
            TAG_KEY
        }
        actions = { vouched; @defaultonly not_vouched; }
        const default_action = not_vouched();
        size = VOUCHED_SIZE;
        support_timeout = true;
    }

    apply {
        if (hdr.tag.suite == 2) {
            hash(meta.sealed_crc, HashAlgorithm.crc32, CRC_BASE, { hdr.sealed_64.bytes }, 64w0x100000000);
        } else {
            hash(meta.sealed_crc, HashAlgorithm.crc32, CRC_BASE, { hdr.sealed_256.bytes }, 64w0x100000000);
        }
        if (meta.family == 4) {
            vouched_v4.apply();
        } else {
            vouched_v6.apply();
        }
        if (meta.verified == 0) {
            meta.disposition = Disposition.HOLD;
            meta.reason = Reason.TAG_UNVERIFIED;
        }
    }
}
