//! Vectors made by Python (hmac, hashlib, cryptography): nothing of ours stands behind these values.
//! The key of SAS and HS tokens is the base64 text `KEY`. Tokens are of `pump-17`, made at 1795251600, and end an hour later.

pub(super) const KEY: &str = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
/// Base64 of a group's key, and in hexadecimal what it derives for `line7-a`.
pub(super) const GROUP: (&str, &str) = (
    "cXdlcnR5dWlvcGFzZGZnaGprbHp4Y3Zibm0xMjM0NTY=",
    "fd6eb67b82037bbdb395ecf3b9a504daa40e33a770a5df06ba7d6da2e40fc59e",
);
/// The first 16 hexadecimal digits of the SHA-256 of the key.
pub(super) const KEY_FINGERPRINT: u64 = 0x861009ec4d599fab;
/// (`sr` as sent, token, id)
pub(super) const SAS: [(&str, &str); 3] = [
    (
        "SharedAccessSignature sr=localhost%2Fdevices%2Fpump-17&sig=99oah761wjMl0r5at5K7uAB6yEvfnV%2F8pbqTtPxxtTo%3D&se=1795255200",
        "9bb1046b2851d75a46ed68da0a2ca90b",
    ),
    (
        "SharedAccessSignature sr=localhost%2fdevices%2fpump-17&sig=VD%2Br1SWrrieC5tRnsp%2FLdSQNXjsrTUnJAzl6xlSkRX4%3D&se=1795255200",
        "721ac3bef38dd69d1518b17678c66c8f",
    ),
    (
        "SharedAccessSignature sr=localhost/devices/pump-17&sig=LDIT9u0lkNxUppsQZSCZsB7vkkiBZ6s9Ai3lhv1aKis%3D&se=1795255200",
        "74d5c34a80600d4b561483624c511345",
    ),
];
pub(super) const JWT: [(&str, &str, &str); 12] = [
    (
        "HS256",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.cG32X5YiWGaDx-3QWswVtmk9VSR21FVUUSRKM95QfcE",
        "adc9eebc7d351b0dc90d5ad8b13278ef",
    ),
    (
        "HS384",
        "eyJhbGciOiJIUzM4NCIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.FhD70f_MX0Nj4ka4H_X7KtquHmb8M2mAVMbAUX-_-PHMkRgJN_a5kDSRYdksOeYj",
        "c12a0847da0e7728223a035dbdf3e905",
    ),
    (
        "HS512",
        "eyJhbGciOiJIUzUxMiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.JawW0y9B8X6fz7W1F0P33efXiXvVft4svwvEGooyATkazYRrODVHCUNeEex0xD96oZpFx04HEw4HvI60U88gRw",
        "a5ef9e74ddd5594fd1802194ae184cea",
    ),
    (
        "RS256",
        "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.NmlqcpLjAfiU0k5gR-kRYy4SX8Ackw-bRQ5mxs4BhTr5VA6d0N1xs9VDMh-AXg-VJ5hwQDF_mzquSkdI8-TgR9VefC5rGwfmMOw9tMqbimlhETBroaQFZLxgKu3PpChVXXFdmFAgc1YSe1xLQJEQL7yxGRIHHrAD954aHXINWi9Gc85DPfho1OSC0l4u2exQPEEl0PTeM7yC9eBV9jXZqo5Dw70uEnKJ3QqIE9Orb8IqttiOy1ovYwYuCTNnAA9cZaW5vuBTrUjtkVtzykCzI4Bj5rtuJC-H80KtDgXGd5ahnK2RPwPvhq8G7iyl8a5NtxecAi2rL9hjhAN7NtLh7Q",
        "8339db6c76f143db8d1831e8947bca0a",
    ),
    (
        "RS384",
        "eyJhbGciOiJSUzM4NCIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.Y1v5_mgPx_l03wOjeJiqSkzj-V-fCSadXjDNfnosRRPOod7sYwCBYWvmz18jfLD9zACMcxeaQgGqhUGANgoCJbTV9O0b7APCboGhLUQ9r0Tzke-eGkmrtkiVnZi1ZBaSkZMxjLB9OF-WQfaGZlJq76IIgnENk_cI1Gr5Nx3MhEinVwg7yVXl3o4cyPM2pSUhm0SlN9EOh8zRw3sTA0uCIu3FYM88d3CB0VUocqKYlLZhkrNmnNLI8NDKqhGpVyzvw1zdXSFC0zPxVX4gX_x1n3IFyOikTeRLG40FMg_4Tr_Xo13zTnu7tMmOz34RXvezgdCgRPuiQdla89XPT2p8iw",
        "3b464417f7d4ef14455653820bbac724",
    ),
    (
        "RS512",
        "eyJhbGciOiJSUzUxMiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.hXhXS39xVxwXLtAqiGvSlWBxaupgbyZLS7GLKFukZ2qFWwCX1MGsNM3vnM38ZMb4d0JCVbz6btPnMvVX5fGE_ER44t5KwZNkaLvzOCbXD_X5X9AW-5s_5dXgP9uVFLNXfxzpHH4oie-GSMdTuNIgYKSYnYmT-V_IZGKRFjm5GxBXv82iy-R2FBVlxUhqrfqShA8JCqS2RtXWDke_HSXEUFRio-6-p15gnNIo8CpqXHHlVSTxFRSEw_4h5XJlkeRDvHlDbnu5HEqjCtv31CJHinGkr3EYKvDC017d22mqbcHMw7nRP4pmvnxDg9_5KpzDsRO_XyI1PxrD8xQl9YTEAw",
        "c6fc7f2f9d065a11cc94985e1d281083",
    ),
    (
        "PS256",
        "eyJhbGciOiJQUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.TxP8IpmphCrZG_S_fJe1Xn1pGf59Q9-0ARMbp9b-qaHjSVKhcHAWC55g8pQ9bPzGdiET9t3YZxe-A53ewIqdfu6LfVil7QrQPBSxv0K-TKhDyEXmKllJ9ZbDlI17paIRLmtkfZC6bOfhfssBkLAXvwF0ejz0xc6d9gVJ2AeJzKwRWL19ip-WqmW-E69u4c2viHxN22UtoPqYvbnMF2q5uuI9dvZDkm4Zq2JFjP3NiScDllsWtNmlk2PIAv2cec1QWYs-CqRCGy_Qm8IjzuSvCGnaFW5UUjG2ZdaNTQT28ujHeA4xaFukyJ0d9B3To6aqYPn0YyJG2QFIUE7UJ2Mttg",
        "b6b1ade33a3084fbabfb3258163fa820",
    ),
    (
        "PS384",
        "eyJhbGciOiJQUzM4NCIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.cye2gqchrnQtiAQqCO__NmKnm7JEY7jyHRlcsDXJJtPVIsM412R68aKbiA2Pu5x9GoMTo0jcTUX0rnUQw0zxr8BorV9BHoNAOqfhrH5T3ZVoFCxEcA76tTxQgxEGKk8nHaZiAkN5GlUUMaO0oQGKt9KEjSMA2GwepJ5SvOMsps2AeAc47lC-uMLcAcqPi_437N5Ujt8EmSaCeUb0VxuOn7OoWROW6GL2RuhHHSGeaSbTquDrSIPcB1nEKemxBoYsMI4GEzYetnx0kc_aPClabdWGXgCSG0gXKNRYjL48NoVMRBDUe42QThW9Uj2Eq6-zLnqBPYOp08cjbH9xVfQFLQ",
        "7c77dc6a37d93f5ce1afc92e7a8316e4",
    ),
    (
        "PS512",
        "eyJhbGciOiJQUzUxMiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.GmERXaxuxTOaANemmoX4XstT4lpc0Bvf8FfsucBUKd1tDf3AIGzQAv0uEIgzDQ3iG8HF6vnY1xe8zrDWxsmAHHDB2yb2RA7QKWEQhUNcpH5R31tKRQSwNXoOIBDsjNw4wBCGiZFJ-O8NH44qdPFAKOjRgsWRCAY5mF4ZbL7ImaYlnZb7RlBJcMmpeLm_RZT9chKBjZCNbIkTVOvjYkQkLNOcEcoxzKjDv0vG3YEKPfQ5OV_AhxCPZcRgznPDot9WRq4o22UAVV-v0VIwLlm2NVTjbkxUEo22HZTrJkZB_vzOqHvlOZvoc543t6EsfoSaQq8CFdQgZyaxlxz7BRnaow",
        "4fd89b0de51baf5e7f3d8e22d376678a",
    ),
    (
        "ES256",
        "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.gpM_Lrc0koK816vR10GAhLKcbCZKsVG99yJt22mtI6H8mvw6w86MB4DErsRsFlJuLZ8Qmf9YxuVxibItND3dJQ",
        "904171e95c25f0d45c1e4999616a2825",
    ),
    (
        "ES384",
        "eyJhbGciOiJFUzM4NCIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.N7Cy3LkOJujjji89s3kwiLcMNmfvUtsYsKuJ8sSqbR3JGS1cGtEsRLw_CNS4bW3MW0k9ImHCqSgyKN5rDSvyfigrbdlCdjjssHFPULyPOhUwyKNHNFfvzTdLDqTp5MQk",
        "1273fdcabbdf8d01ddfb0ca7d95a171e",
    ),
    (
        "EdDSA",
        "eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.K4Jlyf4L-kqwLVnawEINLE3Z9bvN1_mdZc-MATf3qQRrWWcazLiBavNnSWu1AlHHdXiMImboeXCPrsSPnDiTCw",
        "6ff4c7995345640f00d53c3d2e14a863",
    ),
];
/// The ES256 token with the other signature of the same text (s and n - s are both valid).
pub(super) const ES256_TWIN: &str = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9.eyJpc3MiOiJodHRwczovL2lkLmZhY3RvcnkuZXhhbXBsZSIsImF1ZCI6ImxvY2FsaG9zdCIsInN1YiI6InB1bXAtMTciLCJqdGkiOiJqMSIsImlhdCI6MTc5NTI1MTYwMCwiZXhwIjoxNzk1MjU1MjAwfQ.gpM_Lrc0koK816vR10GAhLKcbCZKsVG99yJt22mtI6EDZQPEPDFz-X87UTuT6a2Rj0fqE6e-15-CMBiVyCVILA";
pub(super) const RSA_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEAxFbi4vhlkSnHkboX+Mfe\n\
    aN3c5FuePy4KUg4uRTjz96zjzadBAMg+wNZqVuyypQuVChYvHR46sUOckFSf7Cdt\n\
    rTgnDtMpIBVxl6m/cPDRGACN5rzpC/A82XNX+DZuWC4e9f+mSk4HzSenE7XNuUTt\n\
    SGa4O0Oz1MWDk7KLXplejrLeyrJCjjL90EddWVeJEK31H4WTuxXU73ySmxkqzHgK\n\
    vI7IqWYOZpVevU6Bt8jfTiJZRQshVsPtpa0FLKbvrA810+kKjUPZoHNWZAodCN6d\n\
    1MAuukzCXwJ58VDWL/ifwbGnlHY7PXnfsHYvRqpNzuQ8NZwUnVIiIXtCRg1SQzhg\n\
    ZwIDAQAB\n\
    -----END PUBLIC KEY-----\n";
pub(super) const RSA_PKCS1: &str = "-----BEGIN RSA PUBLIC KEY-----\n\
    MIIBCgKCAQEAxFbi4vhlkSnHkboX+MfeaN3c5FuePy4KUg4uRTjz96zjzadBAMg+\n\
    wNZqVuyypQuVChYvHR46sUOckFSf7CdtrTgnDtMpIBVxl6m/cPDRGACN5rzpC/A8\n\
    2XNX+DZuWC4e9f+mSk4HzSenE7XNuUTtSGa4O0Oz1MWDk7KLXplejrLeyrJCjjL9\n\
    0EddWVeJEK31H4WTuxXU73ySmxkqzHgKvI7IqWYOZpVevU6Bt8jfTiJZRQshVsPt\n\
    pa0FLKbvrA810+kKjUPZoHNWZAodCN6d1MAuukzCXwJ58VDWL/ifwbGnlHY7PXnf\n\
    sHYvRqpNzuQ8NZwUnVIiIXtCRg1SQzhgZwIDAQAB\n\
    -----END RSA PUBLIC KEY-----\n";
pub(super) const RSA1024_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCvVZAH8qXv8G1ofLY7nsEoU3xD\n\
    /Q3T3A8Ee6CHJ0/3PcqBTHVdbG2i/IJGC/mnTUoZoTHtUcFmmU9yaVEo3Dox68nP\n\
    D2BI6vMvgpMtuuHwSPMYniDm9Fl2Tc54JUHaFQcN4QISHsw2mGcq5mj9SD2ZrBaa\n\
    JKfGiKkSGuiVGhBwUQIDAQAB\n\
    -----END PUBLIC KEY-----\n";
/// Public exponent 3.
pub(super) const RSA3_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIIBIDANBgkqhkiG9w0BAQEFAAOCAQ0AMIIBCAKCAQEAuqucev4WvrstEnBCCZCl\n\
    VSch5dFUYfpidLmAQA5mJtHfB2mBRhr4gItVY+PsO4k1vGBUclHXPFxm0FRR+sRJ\n\
    Yub34KTOj0aFX7oLWjrEzucUE4ltFO1hBZ+l1ZZFjo2KvZQvO4iu6IyFORteM0T5\n\
    CQvxa0Z4HIouShCSOjwLBbD5mcq86MHK310vJVnioKcLxEjsZIjWPrkkXAgoUwbW\n\
    7jfsAiqHjOuw+BvFXtKOS6yFO4vfraM4eT3QW4ZiLNt9v5D86OhZIVVhK+x6XVB+\n\
    Ffs6nD12R8FX876dj+ltzqq2pka5k62gRgl/DJNX5RsvyeXsfn8nqvuzzxtKU4Ay\n\
    HwIBAw==\n\
    -----END PUBLIC KEY-----\n";
pub(super) const EC256_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE10avvjU/vxnYFHSbfyA1hIthnEOo\n\
    ISi/+saDifyHtUJg/JxwL88KIzW35wvMKXErAiXHWE77yLWJLjQzZIX7rQ==\n\
    -----END PUBLIC KEY-----\n";
pub(super) const EC384_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEMY/SxrZoNMNMPdFhmsOPX9E0g3oYDftY\n\
    trCnTV95Sax9EpEGcCXBPIlTz8Tu0VIMydEh4WvtaOURBZHAmUSxEwSZ4TfdCNzT\n\
    8YySblr1QT8HaAVp8SCDjqz/vBsusQBW\n\
    -----END PUBLIC KEY-----\n";
/// The curve secp256k1, whose points are as long as those of P-256.
pub(super) const K1_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEkxyH+TQ56q+SYm4tY11yrRYX0eOXcDz5\n\
    S9+dpu9vlndqHzzfvCJ9vuCnFuG/ihHc2ui+oPiMr8SH7FR+0vnGcA==\n\
    -----END PUBLIC KEY-----\n";
pub(super) const ED_PEM: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEAjjXOu73lxaKu3zb9j/KuvWulTv8IFy9CPklSIXiyIPU=\n\
    -----END PUBLIC KEY-----\n";
pub(super) const JWKS: &str = r#"{"keys": [{"kty": "RSA", "kid": "r", "alg": "RS256", "use": "sig", "n": "xFbi4vhlkSnHkboX-MfeaN3c5FuePy4KUg4uRTjz96zjzadBAMg-wNZqVuyypQuVChYvHR46sUOckFSf7CdtrTgnDtMpIBVxl6m_cPDRGACN5rzpC_A82XNX-DZuWC4e9f-mSk4HzSenE7XNuUTtSGa4O0Oz1MWDk7KLXplejrLeyrJCjjL90EddWVeJEK31H4WTuxXU73ySmxkqzHgKvI7IqWYOZpVevU6Bt8jfTiJZRQshVsPtpa0FLKbvrA810-kKjUPZoHNWZAodCN6d1MAuukzCXwJ58VDWL_ifwbGnlHY7PXnfsHYvRqpNzuQ8NZwUnVIiIXtCRg1SQzhgZw", "e": "AQAB"}, {"kty": "EC", "kid": "e", "crv": "P-256", "x": "10avvjU_vxnYFHSbfyA1hIthnEOoISi_-saDifyHtUI", "y": "YPyccC_PCiM1t-cLzClxKwIlx1hO-8i1iS40M2SF-60"}, {"kty": "EC", "kid": "e3", "crv": "P-384", "x": "MY_SxrZoNMNMPdFhmsOPX9E0g3oYDftYtrCnTV95Sax9EpEGcCXBPIlTz8Tu0VIM", "y": "ydEh4WvtaOURBZHAmUSxEwSZ4TfdCNzT8YySblr1QT8HaAVp8SCDjqz_vBsusQBW"}, {"kty": "OKP", "kid": "d", "crv": "Ed25519", "x": "jjXOu73lxaKu3zb9j_KuvWulTv8IFy9CPklSIXiyIPU"}, {"kty": "RSA", "kid": "enc", "use": "enc", "n": "xFbi4vhlkSnHkboX-MfeaN3c5FuePy4KUg4uRTjz96zjzadBAMg-wNZqVuyypQuVChYvHR46sUOckFSf7CdtrTgnDtMpIBVxl6m_cPDRGACN5rzpC_A82XNX-DZuWC4e9f-mSk4HzSenE7XNuUTtSGa4O0Oz1MWDk7KLXplejrLeyrJCjjL90EddWVeJEK31H4WTuxXU73ySmxkqzHgKvI7IqWYOZpVevU6Bt8jfTiJZRQshVsPtpa0FLKbvrA810-kKjUPZoHNWZAodCN6d1MAuukzCXwJ58VDWL_ifwbGnlHY7PXnfsHYvRqpNzuQ8NZwUnVIiIXtCRg1SQzhgZw", "e": "AQAB"}]}"#;
