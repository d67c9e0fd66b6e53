import java.io.IOException;
import java.io.OutputStream;
import java.math.BigInteger;
import java.net.HttpURLConnection;
import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.time.Duration;
import java.time.Instant;
import java.util.Map;
import org.bouncycastle.asn1.ASN1ObjectIdentifier;
import org.bouncycastle.cert.X509CertificateHolder;
import org.bouncycastle.cms.jcajce.JcaSimpleSignerInfoVerifierBuilder;
import org.bouncycastle.jce.provider.BouncyCastleProvider;
import org.bouncycastle.operator.DigestCalculator;
import org.bouncycastle.operator.DigestCalculatorProvider;
import org.bouncycastle.operator.jcajce.JcaDigestCalculatorProviderBuilder;
import org.bouncycastle.tsp.TimeStampRequest;
import org.bouncycastle.tsp.TimeStampRequestGenerator;
import org.bouncycastle.tsp.TimeStampResponse;
import org.bouncycastle.tsp.TimeStampToken;
import org.bouncycastle.tsp.cms.CMSTimeStampedData;
import org.bouncycastle.util.Selector;

/**
 * Bouncy Castle as a client of a time-stamp authority.
 *
 * <p>{@code Stamp ask URL ALGORITHM POLICY}: asks for a token over a few octets and validates response and token, as its
 * documentation says; POLICY is {@code -} for none. Prints {@code granted}, the policy, the accuracy in seconds, and how
 * many certificates came along; or {@code refused} with the failInfo's number and the text.
 *
 * <p>{@code Stamp data FILE}: validates a TimeStampedData and prints what document is in it.
 */
public final class Stamp {
    private static final Map<String, String> ALGORITHMS =
        Map.of(
            "SHA-256", "2.16.840.1.101.3.4.2.1",
            "SHA-384", "2.16.840.1.101.3.4.2.2",
            "SHA-512", "2.16.840.1.101.3.4.2.3",
            "SHA3-256", "2.16.840.1.101.3.4.2.8",
            "SHA-1", "1.3.14.3.2.26");

    public static void main(String[] arguments) throws Exception {
        if (arguments[0].equals("ask")) {
            ask(arguments[1], arguments[2], arguments[3]);
        } else {
            data(Path.of(arguments[1]));
        }
    }

    private static void ask(String url, String algorithm, String policy) throws Exception {
        byte[] digest = MessageDigest.getInstance(algorithm).digest("ສັນຍາ".getBytes("UTF-8"));
        TimeStampRequestGenerator generator = new TimeStampRequestGenerator();
        generator.setCertReq(true);
        if (!policy.equals("-")) {
            generator.setReqPolicy(new ASN1ObjectIdentifier(policy));
        }
        BigInteger nonce = new BigInteger(64, new SecureRandom());
        TimeStampRequest request =
            generator.generate(new ASN1ObjectIdentifier(ALGORITHMS.get(algorithm)), digest, nonce);
        TimeStampResponse response = new TimeStampResponse(post(url, request.getEncoded()));
        response.validate(request);
        TimeStampToken token = response.getTimeStampToken();
        if (token == null) {
            System.out.println("refused " + response.getFailInfo().intValue() + " " + response.getStatusString());
            return;
        }
        validate(token);
        Instant genTime = token.getTimeStampInfo().getGenTime().toInstant();
        if (Duration.between(genTime, Instant.now()).abs().compareTo(Duration.ofMinutes(1)) > 0) {
            throw new IllegalStateException("genTime is not now: " + genTime);
        }
        System.out.println(
            "granted "
                + token.getTimeStampInfo().getPolicy()
                + " "
                + token.getTimeStampInfo().getGenTimeAccuracy().getSeconds()
                + " "
                + token.getCertificates().getMatches(null).size());
    }

    private static void data(Path file) throws Exception {
        CMSTimeStampedData data = new CMSTimeStampedData(Files.readAllBytes(file));
        TimeStampToken[] tokens = data.getTimeStampTokens();
        byte[] content = data.getContent();
        DigestCalculatorProvider digests =
            new JcaDigestCalculatorProviderBuilder().setProvider(new BouncyCastleProvider()).build();
        DigestCalculator digest = data.getMessageImprintDigestCalculator(digests);
        digest.getOutputStream().write(content);
        data.validate(digests, digest.getDigest());
        validate(tokens[0]);
        System.out.println(data.getFileName() + " " + content.length + " " + tokens.length);
    }

    /** The unit's certificate is the one that the signer names, and came along; it must have the critical purpose. */
    private static void validate(TimeStampToken token) throws Exception {
        @SuppressWarnings("unchecked")
        Selector<X509CertificateHolder> signer = token.getSID();
        X509CertificateHolder unit = token.getCertificates().getMatches(signer).iterator().next();
        token.validate(new JcaSimpleSignerInfoVerifierBuilder().setProvider(new BouncyCastleProvider()).build(unit));
    }

    private static byte[] post(String url, byte[] request) throws IOException {
        HttpURLConnection connection = (HttpURLConnection) URI.create(url).toURL().openConnection();
        connection.setDoOutput(true);
        connection.setRequestProperty("Content-Type", "application/timestamp-query");
        try (OutputStream out = connection.getOutputStream()) {
            out.write(request);
        }
        if (connection.getResponseCode() != 200 || !connection.getContentType().equals("application/timestamp-reply")) {
            throw new IOException(connection.getResponseCode() + " " + connection.getContentType());
        }
        return connection.getInputStream().readAllBytes();
    }
}
