// SipHash-2-4 (Aumasson, Bernstein 2012) of M, 32 bytes for IPv4 and 56 for
// IPv6. State and words are metadata fields, and each step is an action of its
// own: as one straight line p4c substitutes expressions into each other until
// it runs for minutes. Used once to verify (ingress) and once to issue
// (egress).

#define ROTL(x, n) (((x) << n) | ((x) >> (64 - n)))

// A round leaves v2 without its last rotation, which SIP_ROUND makes up for
// where it takes v2 next: one assignment less.
#define SIP_ROUND_OF(first, third) \
    meta.sip.v0 = first + meta.sip.v1; \
    meta.sip.v2 = third + meta.sip.v3; \
    meta.sip.v1 = ROTL(meta.sip.v1, 13) ^ meta.sip.v0; \
    meta.sip.v3 = ROTL(meta.sip.v3, 16) ^ meta.sip.v2; \
    meta.sip.v0 = ROTL(meta.sip.v0, 32) + meta.sip.v3; \
    meta.sip.v2 = meta.sip.v2 + meta.sip.v1; \
    meta.sip.v3 = ROTL(meta.sip.v3, 21) ^ meta.sip.v0; \
    meta.sip.v1 = ROTL(meta.sip.v1, 17) ^ meta.sip.v2;

#define SIP_V2 ROTL(meta.sip.v2, 32)
#define SIP_ROUND() SIP_ROUND_OF(meta.sip.v0, SIP_V2)

// The word before is taken into v0 where v0 is next used, for the same reason.
#define SIP_ABSORB(name, before, w) \
    action name() { \
        meta.sip.v3 = meta.sip.v3 ^ (w); \
        SIP_ROUND_OF((meta.sip.v0 ^ (before)), SIP_V2) \
        SIP_ROUND() \
    }

#define SIP_LENGTH_32 64w0x2000000000000000
#define SIP_LENGTH_56 64w0x3800000000000000

#define SIP_FINALISE(name, before) \
    action name() { \
        SIP_ROUND_OF((meta.sip.v0 ^ before), (SIP_V2 ^ 0xff)) \
        SIP_ROUND() \
    }

control SipHash(inout metadata_t meta) {
    // An action of its own, because p4c would put these into what follows. v2 is
    // without a rotation here too.
    action initialise() {
        meta.sip.v0 = meta.sip.k0 ^ 0x736f6d6570736575;
        meta.sip.v1 = meta.sip.k1 ^ 0x646f72616e646f6d;
        meta.sip.v2 = ROTL(meta.sip.k0, 32) ^ 0x6e6572616c796765;
        meta.sip.v3 = meta.sip.k1 ^ 0x7465646279746573;
    }

    SIP_ABSORB(absorb_w0, 0, meta.sip.w0)
    SIP_ABSORB(absorb_w1, meta.sip.w0, meta.sip.w1)
    SIP_ABSORB(absorb_w2, meta.sip.w1, meta.sip.w2)
    SIP_ABSORB(absorb_w3, meta.sip.w2, meta.sip.w3)
    SIP_ABSORB(absorb_length_32, meta.sip.w3, SIP_LENGTH_32)
    SIP_ABSORB(absorb_low_first, meta.sip.w2, meta.low6[127:64])
    SIP_ABSORB(absorb_low_second, meta.low6[127:64], meta.low6[63:0])
    SIP_ABSORB(absorb_high_first, meta.low6[63:0], meta.high6[127:64])
    SIP_ABSORB(absorb_high_second, meta.high6[127:64], meta.high6[63:0])
    SIP_ABSORB(absorb_length_56, meta.high6[63:0], SIP_LENGTH_56)
    SIP_FINALISE(finalise_32, SIP_LENGTH_32)
    SIP_FINALISE(finalise_56, SIP_LENGTH_56)

    action finish() {
        SIP_ROUND()
        SIP_ROUND()
        meta.sip.v0 = meta.sip.v0 ^ meta.sip.v1 ^ SIP_V2 ^ meta.sip.v3;
    }

    // Leaves the digest of k0, k1, w0, w1 and the packet's five-tuple in v0.
    apply {
        initialise();
        absorb_w0();
        absorb_w1();
        absorb_w2();
        if (meta.family == 4) {
            absorb_w3();
            absorb_length_32();
            finalise_32();
        } else {
            absorb_low_first();
            absorb_low_second();
            absorb_high_first();
            absorb_high_second();
            absorb_length_56();
            finalise_56();
        }
        finish();
    }
}
