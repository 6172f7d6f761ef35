// Stage `issuer_key`: (suite, unid, epoch) of a tag gives the key and its
// state; the digests of suites 1 and 2 are verified right here (steps 2 to 4
// of verifying). A wrong action for a suite counts as key unknown.
control IssuerKey(inout headers_t hdr, inout metadata_t meta) {
    SipHash() siphash;

    bit<4> key_suite = 0;

    @id(0x01000201)
    action siphash_key(@id(1) KeyState state, @id(2) bit<1> own_site,
                       @id(3) bit<64> k0, @id(4) bit<64> k1) {
        meta.key_state = state;
        meta.own_site = own_site;
        meta.sip.k0 = k0;
        meta.sip.k1 = k1;
        key_suite = 1;
    }

    // The filter key of suite 2.
    @id(0x01000202)
    action ed25519_key(@id(1) KeyState state, @id(2) bit<1> own_site,
                       @id(3) bit<64> k0, @id(4) bit<64> k1) {
        meta.key_state = state;
        meta.own_site = own_site;
        meta.sip.k0 = k0;
        meta.sip.k1 = k1;
        key_suite = 2;
    }

    @id(0x01000203)
    action rsa2048_key(@id(1) KeyState state, @id(2) bit<1> own_site) {
        meta.key_state = state;
        meta.own_site = own_site;
        key_suite = 3;
    }

    // A retired or revoked key, of any suite.
    @id(0x01000204)
    action tombstone() {
        meta.key_state = KeyState.TOMBSTONE;
        key_suite = hdr.tag.suite;
    }

    @id(0x01000205)
    action unknown_key() {
        key_suite = 0;
    }

    @id(0x02000201)
    table issuer_key {
        key = {
            hdr.tag.suite : exact @name("suite") @id(1);
            hdr.tag.unid : exact @name("unid") @id(2);
            hdr.tag.epoch : exact @name("epoch") @id(3);
        }
        actions = { siphash_key; ed25519_key; rsa2048_key; tombstone; @defaultonly unknown_key; }
        const default_action = unknown_key();
        size = ISSUER_KEY_SIZE;
    }

    action drop(Reason reason) {
        meta.disposition = Disposition.DROP;
        meta.reason = reason;
    }

    action drop_with_copy() {
        drop(Reason.TAG_UNKNOWN_KEY);
        meta.copy = Reason.TAG_UNKNOWN_KEY;
    }

    action message_head() {
        meta.sip.w0 = hdr.tag.version ++ hdr.tag.suite ++ 8w0 ++ hdr.tag.epoch ++ hdr.tag.unid;
        meta.sip.w1 = hdr.tag.nonce;
    }

    action verified_siphash() {
        meta.verified = 1;
    }

    apply {
        issuer_key.apply();
        if (key_suite != hdr.tag.suite || meta.key_state == KeyState.NONE) {
            drop_with_copy();
        } else if (meta.key_state == KeyState.TOMBSTONE) {
            drop(Reason.TAG_REVOKED);
        } else if (meta.role == Role.ECHO && meta.own_site == 0) {
            drop(Reason.TAG_ON_EDGE);
        } else if (meta.key_state == KeyState.ECHO_ONLY && meta.role != Role.ECHO) {
            drop(Reason.TAG_REVOKED);
        } else if (hdr.tag.suite != 3) {
            message_head();
            siphash.apply(meta);
            if (meta.sip.v0 != hdr.tag.digest) {
                drop(Reason.TAG_FORGED);
            } else if (hdr.tag.suite == 1) {
                verified_siphash();
            }
        }
    }
}
