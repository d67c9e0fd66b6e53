import java.io.IOException;
import java.io.OutputStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.SecureRandom;
import java.security.cert.CertPathValidator;
import java.security.cert.CertPathValidatorException;
import java.security.cert.Certificate;
import java.security.cert.CertificateFactory;
import java.security.cert.CertificateRevokedException;
import java.security.cert.Extension;
import java.security.cert.PKIXParameters;
import java.security.cert.PKIXRevocationChecker;
import java.security.cert.TrustAnchor;
import java.security.cert.X509Certificate;
import java.util.ArrayList;
import java.util.EnumSet;
import java.util.List;
import java.util.Set;

/**
 * Java's own PKIX path validation with its revocation checker, which asks OCSP as the certificates say and nothing else.
 *
 * <p>Usage: {@code java Revocation.java ANCHOR,CA,...,LEAF ...}: for each list of PEM files one path from the trust
 * anchor down. One line is printed for each: the leaf's file name, a tab, and {@code valid}, or the reason and, for a
 * revoked certificate, the revocation reason. The system property {@code nonce} gives the number of octets of a nonce
 * that is put into each request by hand; Java has its own, switched on by jdk.security.certpath.ocspNonce.
 */
public final class Revocation {
    public static void main(String[] paths) throws Exception {
        for (String path : paths) {
            String[] files = path.split(",");
            List<X509Certificate> certificates = new ArrayList<>();
            for (String file : files) {
                certificates.add(0, read(Path.of(file)));
            }
            X509Certificate anchor = certificates.remove(certificates.size() - 1);
            System.out.println(Path.of(files[files.length - 1]).getFileName() + "\t" + verdict(certificates, anchor));
        }
    }

    private static String verdict(List<X509Certificate> path, X509Certificate anchor) throws Exception {
        CertPathValidator validator = CertPathValidator.getInstance("PKIX");
        PKIXRevocationChecker checker = (PKIXRevocationChecker) validator.getRevocationChecker();
        // Without a way out: no CRL in place of an answer, and no answer is a failure.
        checker.setOptions(EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK));
        Integer octets = Integer.getInteger("nonce");
        if (octets != null) {
            byte[] nonce = new byte[octets];
            new SecureRandom().nextBytes(nonce);
            checker.setOcspExtensions(List.of(new Nonce(nonce)));
        }
        PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(anchor, null)));
        parameters.addCertPathChecker(checker);
        try {
            validator.validate(CertificateFactory.getInstance("X.509").generateCertPath(path), parameters);
            return "valid";
        } catch (CertPathValidatorException refused) {
            if (refused.getCause() instanceof CertificateRevokedException revoked) {
                return refused.getReason() + " " + revoked.getRevocationReason();
            }
            System.err.println(refused);
            return refused.getReason().toString();
        }
    }

    private static X509Certificate read(Path file) throws Exception {
        try (var stream = Files.newInputStream(file)) {
            Certificate certificate = CertificateFactory.getInstance("X.509").generateCertificate(stream);
            return (X509Certificate) certificate;
        }
    }

    /** The nonce extension (RFC 9654): an OCTET STRING inside that of every extension's value. */
    private record Nonce(byte[] octets) implements Extension {
        private static final byte[] OID = {6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2};

        @Override
        public String getId() {
            return "1.3.6.1.5.5.7.48.1.2";
        }

        @Override
        public boolean isCritical() {
            return false;
        }

        @Override
        public byte[] getValue() {
            return element(4, octets);
        }

        @Override
        public void encode(OutputStream out) throws IOException {
            byte[] value = element(4, getValue());
            byte[] content = new byte[OID.length + value.length];
            System.arraycopy(OID, 0, content, 0, OID.length);
            System.arraycopy(value, 0, content, OID.length, value.length);
            out.write(element(0x30, content));
        }

        private static byte[] element(int tag, byte[] content) {
            byte[] encoded = new byte[content.length + 2];
            encoded[0] = (byte) tag;
            encoded[1] = (byte) content.length; // one octet says lengths up to 127
            System.arraycopy(content, 0, encoded, 2, content.length);
            return encoded;
        }
    }
}
